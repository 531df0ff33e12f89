"""The status document, without a data plane: what it says, and when it is logged."""

import json
import logging
import os
import struct
from collections.abc import Callable
from dataclasses import fields

import pytest
import uvloop
from server_kit.iommu import PAGE, PARTS, PLATFORM, iommu
from server_kit.wire import LINUX, REGION_SIZE, UVA, Wire, addresses, memfd, region, wired

from vhostblk.blk.features import names
from vhostblk.engine.api import Counters, Fault
from vhostblk.memory.regions import Place, RegionTable, Wanted
from vhostblk.server.device import STARTS_TOLD
from vhostblk.server.policy import Confidential
from vhostblk.server.status import Status, log_status, resident, status

Check = Callable[[Wire], object]


def logged(caplog: pytest.LogCaptureFixture) -> list[Status]:
    """The documents that were logged so far."""
    texts = (record.getMessage() for record in caplog.records)
    return [json.loads(text.partition("status: ")[2]) for text in texts if "status: " in text]


def test_device_without_a_front_end() -> None:
    """Every field is there, whoever is connected; what nobody knows yet is said to be unknown."""

    async def look() -> tuple[Status, Status]:
        async with wired() as wire:
            with_one = status(wire.device)
            wire.sock.close()
            await wire.closed()
            return with_one, status(wire.device)

    first, after = uvloop.run(look())
    assert first.keys() == after.keys()
    assert (first["front_end_connected"], after["front_end_connected"]) == (True, False)
    assert (first["name"], first["mode"]) == ("device", "auto")
    for one in (first, after):
        assert one["guest_dma"] == "unknown"
        assert one["translation"] is None
        assert one["starts"] == 0
        assert one["shared_window"]["ranges"] == []
        assert one["access_platform_offered"] is True
    assert [queue["queue"] for queue in first["queues"]] == [0, 1]
    assert after["queues"] == []


def test_device_at_work() -> None:
    """Who is connected, what it has acked, where its rings are, what its queues have done."""

    async def look() -> Status:
        async with wired(confidential=Confidential.OFF, access_platform=False) as wire:
            await wire.start(1)
            wire.queue.done = Counters(reads=3, faults=2, kicks=5)
            return status(wire.device)

    found = uvloop.run(look())
    assert found["mode"] == "off"
    assert found["access_platform_offered"] is False
    assert found["translation"] == "uva"
    assert found["starts"] == 1
    assert "VIRTIO_F_VERSION_1" in found["acked_features"]
    assert "VIRTIO_BLK_F_FLUSH" in found["acked_features"]
    assert found["guest_mem_faults_total"] == 2
    assert [one["polls_hit"] for one in found["workers"]] == [2]
    one, other = found["queues"]
    assert not one["running"]
    assert other["running"]
    assert other["counters"]["reads"] == 3
    assert other["counters"].keys() == {field.name for field in fields(Counters)}
    assert json.loads(json.dumps(found)) == found


def test_rings_are_shown_where_they_are_in_the_guest() -> None:
    """By guest physical address, whole pages, beside the window: they are not in it."""

    async def look() -> Status:
        async with wired() as wire:
            await wire.negotiate()
            await wire.plug(0x10_0000)
            wire.tell(8, struct.pack("=II", 0, 8))
            wire.tell(9, addresses(0, UVA + 0x10_1000))
            assert await wire.acked(12, struct.pack("=Q", 0), [os.eventfd(0)]) == 0
            assert await wire.acked(18, struct.pack("=II", 0, 1)) == 0
            return status(wire.device)

    window = uvloop.run(look())["shared_window"]
    assert window["rings"] == [{"gpa": "0x101000", "bytes": 0x3000}]
    assert (window["known"], window["span"], window["bytes"], window["islands"]) == (False, 0, 0, 0)


def test_start_is_told_of_when_it_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    """One line of JSON at GET_VRING_BASE of the last ring, and none for a start that never was."""
    caplog.set_level(logging.INFO)

    async def starts() -> None:
        async with wired() as wire:
            await wire.start(0)
            await wire.set_up(1)
            assert await wire.acked(18, struct.pack("=II", 1, 1)) == 0
            await wire.ask(11, struct.pack("=II", 0, 0))
            assert logged(caplog) == []
            await wire.ask(11, struct.pack("=II", 1, 0))
            assert [one["starts"] for one in logged(caplog)] == [1]
            assert await wire.acked(12, struct.pack("=Q", 0), [os.eventfd(0)]) == 0
            assert status(wire.device)["starts"] == 2

    uvloop.run(starts())
    assert [one["starts"] for one in logged(caplog)] == [1, 2], "the front-end left"
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_starts_over_and_over_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """A guest may reset the device as often as it likes; who asks is always told."""
    caplog.set_level("INFO")

    async def look() -> None:
        async with wired() as wire:
            for _ in range(3 * STARTS_TOLD):
                log_status(wire.device, asked=False)
            assert len(logged(caplog)) == STARTS_TOLD
            log_status(wire.device, asked=True)
            assert len(logged(caplog)) == STARTS_TOLD + 1

    uvloop.run(look())


@pytest.mark.parametrize("message", [34, 4], ids=["RESET_DEVICE", "RESET_OWNER"])
def test_reset_ends_a_start(message: int, caplog: pytest.LogCaptureFixture) -> None:
    """The line shows what was acked in that start, and where its rings were."""
    caplog.set_level(logging.INFO)

    async def reset() -> None:
        async with wired() as wire:
            await wire.start()
            assert await wire.acked(message) == 0

    uvloop.run(reset())
    (found,) = logged(caplog)
    assert found["acked_features"] == names(LINUX)
    assert found["shared_window"]["rings"] == [{"gpa": "0x0", "bytes": 0x3000}]


def test_memory_that_moves_begins_a_new_start(caplog: pytest.LogCaptureFixture) -> None:
    """What was seen of the old memory is told, and then forgotten; more memory changes nothing."""
    caplog.set_level(logging.INFO)
    more = region(2 * REGION_SIZE)

    async def moves() -> None:
        async with wired() as wire:
            await wire.start()
            with memfd(REGION_SIZE) as fd:
                assert await wire.acked(37, more, [os.dup(fd)]) == 0
            assert logged(caplog) == []
            assert await wire.acked(38, more) == 0
            assert [one["starts"] for one in logged(caplog)] == [1]
            now = status(wire.device)
            assert now["starts"] == 2
            assert now["shared_window"]["rings"] == [{"gpa": "0x0", "bytes": 0x3000}]

    uvloop.run(moves())


def test_totals_outlive_the_front_end() -> None:
    """A queue that is gone has counted for the device."""

    async def look() -> Status:
        async with wired() as wire:
            await wire.start()
            wire.queue.done = Counters(faults=3)
            wire.device.guest.cbit_address += 1
            wire.sock.close()
            await wire.closed()
            return status(wire.device)

    found = uvloop.run(look())
    assert found["guest_mem_faults_total"] == 3
    assert found["cbit_address_total"] == 1


def test_broken_queue_says_why() -> None:
    """It does not run, and its document names the reason."""

    async def look() -> Status:
        async with wired() as wire:
            await wire.start()
            wire.queue.break_ring(Fault("head out of range", 3, 700))
            return status(wire.device)

    queue = uvloop.run(look())["queues"][0]
    assert (queue["running"], queue["fault"]) == (False, "head out of range")


def test_resident_memory_is_counted_once_for_each_file() -> None:
    """Blocks of the files behind guest memory, two regions of one file together."""

    async def look() -> tuple[int, int]:
        async with wired() as wire:
            await wire.negotiate()
            with memfd(2 * REGION_SIZE) as fd, memfd(REGION_SIZE) as other:
                os.pwrite(fd, b"x" * 3 * PAGE, 0)
                os.pwrite(fd, b"x", REGION_SIZE)
                os.pwrite(other, b"x", 0)
                for gpa, offset, file in ((0, 0, fd), (4, REGION_SIZE, fd), (8, 0, other)):
                    at = gpa * REGION_SIZE
                    place = struct.pack("=8xQQQQ", at, REGION_SIZE, UVA + at, offset)
                    assert await wire.acked(37, place, [os.dup(file)]) == 0
                before = status(wire.device)["memfd_resident_bytes"]
                os.ftruncate(other, 0)
                os.ftruncate(other, REGION_SIZE)
                return before, status(wire.device)["memfd_resident_bytes"]

    assert uvloop.run(look()) == (5 * PAGE, 4 * PAGE)


def test_blocks_on_a_disk_are_no_memory() -> None:
    """Guest memory may be a file of any kind; only what is in host memory counts."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE)
    os.pwrite(fd, b"x", 0)
    place = Place(gpa=0, size=PAGE, uva=UVA)
    table = RegionTable().add(Wanted(place=place, mmap_offset=0, fd=fd)).table
    (region,) = table.regions
    assert resident(table.regions) == PAGE
    region.mapping.in_memory = False
    assert resident(table.regions) == 0
    region.mapping.release()


def test_what_the_iommu_did() -> None:
    """Questions, answers and what is kept; a ring behind an IOMMU makes the guest one of that."""

    async def look() -> tuple[Status, Status]:
        async with iommu() as front:
            await front.up()
            up = status(front.device)
            await front.invalidate(PARTS[0])
            return up, status(front.device)

    up, then = uvloop.run(look())
    assert (up["translation"], up["guest_dma"]) == ("iotlb", "iommu")
    assert up["acked_features"] == names(LINUX | PLATFORM)
    assert (up["iotlb_updates"], up["iotlb_entries"]) == (3, 1), "three neighbours are one"
    assert (up["iotlb_invalidates"], then["iotlb_invalidates"]) == (0, 1)
    assert up["iotlb_misses"] > 0
    assert then["iotlb_entries"] == 1
