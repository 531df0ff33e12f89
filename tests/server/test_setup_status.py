"""How a device is set up, as the status document tells it."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvloop
from server_kit.serving import Serving, serving
from server_kit.wire import LINUX, REGION_SIZE, wired

from vhostblk.disk.api import FileIo
from vhostblk.disk.file import File, LockWhen
from vhostblk.disk.grammar import parse
from vhostblk.disk.make import make
from vhostblk.disk.memory import Memory
from vhostblk.disk.offset import Offset
from vhostblk.engine.choose import EngineName
from vhostblk.guest import Guest
from vhostblk.guest.negotiate import DEFAULT_FEATURES
from vhostblk.server.status import Status, status
from vhostblk.spec.virtio_blk import CONFIG_WRITEBACK_OFFSET

Connect = Callable[..., Guest]
MIB = 1 << 20


def document(server: Serving, device: int = 0) -> Status:
    return server.ask(lambda: status(server.devices[device]))


def places(server: Serving) -> tuple[int | None, int | None]:
    """Where the first ring stands, once its worker has said so: behind the driver's back."""
    for _ in range(1000):
        first = document(server)["queues"][0]
        if first["avail_index"] == first["used_index"] != 0:
            break
    return first["avail_index"], first["used_index"]


def test_who_is_connected_since_when(server: Serving, vhost_user_guest: Connect) -> None:
    """Process, user and time of the front-end; nobody before and after."""
    path = server.add(Memory(MIB))
    before = document(server)
    assert (before["front_end_pid"], before["front_end_uid"]) == (None, None)
    assert before["front_end_since"] is None
    guest = vhost_user_guest(path)
    now = document(server)
    assert (now["front_end_pid"], now["front_end_uid"]) == (os.getpid(), os.getuid())
    assert now["front_end_since"] is not None
    since = datetime.fromisoformat(now["front_end_since"])
    assert abs((datetime.now(UTC) - since).total_seconds()) < 60
    assert "REPLY_ACK" in now["acked_protocol_features"]
    assert now["memory_bytes"] == sum(one["bytes"] for one in now["memory_regions"])
    assert now["memory_bytes"] == 64 * MIB
    guest.close()


def test_what_is_served(server: Serving, vhost_user_guest: Connect) -> None:
    """The disk as it was written, its size as it is now, the write cache as the guest has it."""
    source = parse("memory:1M")
    guest = vhost_user_guest(server.add_from(source, make(source)))
    now = document(server)
    assert (now["disk"], now["size"], now["read_only"]) == ("memory:1M", MIB, False)
    assert now["write_cache"] is True
    guest.write_config(CONFIG_WRITEBACK_OFFSET, b"\0")
    server.run(server.operations.resize("s1", 2 * MIB))
    now = document(server)
    assert (now["write_cache"], now["size"]) == (False, 2 * MIB)
    server.run(server.operations.replace("s1", "memory:3M"))
    assert document(server)["disk"] == "memory:3M"


@pytest.mark.parametrize("io", FileIo)
def test_which_way_a_file_takes(
    io: FileIo, engine: EngineName, server: Serving, vhost_user_guest: Connect, image: Path
) -> None:
    """As it is, or as it was asked for; each read and write goes one way or the other."""
    guest = vhost_user_guest(server.add(File(image, io=io)))
    guest.write(0, bytes(4096))
    guest.read(0, 4096)
    guest.flush()
    now = document(server)
    if engine == "reference":
        assert now["file_io"] is None
        return
    assert now["file_io"] is not None
    ways = {now["file_io"]["read_way"], now["file_io"]["write_way"]}
    counters = now["queues"][0]["counters"]
    told = counters["inline_hits"] + counters["inline_misses"]
    match io:
        case FileIo.AUTO:
            assert ways <= {"ring", "plain", "nowait", "timed"}
            assert told <= 2
        case FileIo.RING:
            assert (ways, told) == ({"ring"}, 0)
        case FileIo.INLINE:
            assert (ways, told, counters["inline_hits"]) == ({"plain"}, 2, 2)
    assert (now["file_io"]["reads_paused"], now["file_io"]["writes_paused"]) == (False, False)


def test_a_file_behind_layers_of_the_core_has_its_ways(image: Path) -> None:
    """They are told of as without layers."""
    size = image.stat().st_size
    disk = File(image, io=FileIo.INLINE)
    with serving("native") as server:
        server.add(Offset(Offset(disk, start=0, size=size), start=0, size=size))
        now = document(server)["file_io"]
    assert now is not None
    assert (now["read_way"], now["write_way"]) == ("plain", "plain")


def test_no_other_disk_has_ways(server: Serving) -> None:
    """Memory is not read through system calls."""
    server.add(Memory(MIB))
    assert document(server)["file_io"] is None


def test_whose_the_disk_is(server: Serving, vhost_user_guest: Connect, image: object) -> None:
    """One that is locked while running is held while a guest runs."""
    path = server.add(File(str(image), lock=LockWhen.WHILE_RUNNING))
    assert document(server)["disk_held"] is False
    guest = vhost_user_guest(path)
    guest.read(0, 512)
    assert document(server)["disk_held"] is True
    guest.stop()
    assert document(server)["disk_held"] is False


def test_where_the_rings_stand(server: Serving, vhost_user_guest: Connect) -> None:
    """State, owner, format, size; the base of those that stand still, the places of the others."""
    path = server.add(Memory(MIB), num_queues=3)
    features = DEFAULT_FEATURES
    guest = vhost_user_guest(path, queues=2, queue_size=64, features=features)
    for _ in range(3):
        guest.read(0, 512)
    first, second, third = document(server)["queues"]
    assert (first["state"], first["owner"]) == ("started, enabled", "worker")
    assert (first["format"], first["ring_size"], first["base"]) == ("split", 64, None)
    assert places(server) == (3, 3)
    assert (third["avail_index"], third["used_index"]) == (None, None)
    assert (first["kick"], first["call"], first["err"]) == (True, True, True)
    assert (third["state"], third["owner"], third["ring_size"]) == (
        "stopped, disabled",
        "control",
        0,
    )
    assert third["kick"] is False
    guest.frontend.set_vring_enable(1, enable=False)
    assert document(server)["queues"][1]["state"] == "started, disabled"
    assert second["owner"] == "worker"
    guest.stop()
    first = document(server)["queues"][0]
    assert (first["state"].partition(",")[0], first["owner"], first["base"]) == (
        "stopped",
        "control",
        3,
    )
    assert (first["avail_index"], first["used_index"]) == (None, None)
    assert first["kick"] is False


def test_where_a_packed_ring_stands(server: Serving, vhost_user_guest: Connect) -> None:
    """In descriptors of the ring, whichever round it is in."""
    path = server.add(Memory(MIB))
    guest = vhost_user_guest(path, packed=True, queue_size=10)
    for _ in range(12):  # one descriptor each
        guest.read(0, 512)
    assert document(server)["queues"][0]["format"] == "packed"
    assert places(server) == (2, 2)


def test_regions_are_shown_as_they_come_and_go() -> None:
    """By guest physical address; without a peer nobody's process is made up."""

    async def look() -> tuple[Status, Status]:
        async with wired() as wire:
            await wire.negotiate(LINUX)
            empty = status(wire.device)
            await wire.plug(0x10_0000)
            return empty, status(wire.device)

    empty, full = uvloop.run(look())
    assert (empty["memory_bytes"], empty["memory_regions"]) == (0, [])
    assert full["memory_regions"] == [{"gpa": "0x100000", "bytes": REGION_SIZE}]
    assert (full["front_end_connected"], full["front_end_pid"]) == (True, None)
    assert (full["inflight_region"], full["dirty_log"]) == (False, False)
