"""
What is noticed of a queue that broke and of addresses, by a server without a data plane.

Whole guests with both data planes: `test_symptoms`.
"""

import errno
import hashlib
import logging
import os
import struct
from collections.abc import Iterator

import pytest
import uvloop
from frontend_bytes import u64
from server_kit.engine import FakeEngine
from server_kit.rings import AVAIL, NUM, USED, attached, begin
from server_kit.wire import REGION_SIZE, UVA, addresses

from vhostblk.blk.device import BlkDevice
from vhostblk.engine.api import Fault
from vhostblk.engine.reason import Reason
from vhostblk.memory.regions import Place, RegionTable, Wanted
from vhostblk.memory.sample import Role, Sample
from vhostblk.memory.space import AddressSpace
from vhostblk.server.detect import Detector
from vhostblk.server.guest_counters import GuestCounters
from vhostblk.server.keeper import Keeper
from vhostblk.server.log import Log
from vhostblk.server.ring import Ring
from vhostblk.server.terms import Terms

TOTAL = 26 * NUM + 12
ENCRYPTED, BIT = "looks encrypted", "the same without"
AHEAD = Fault(Reason.AVAIL_INDEX.text, 0, 0x9C3F)


def noise(fd: int, num: int = NUM) -> None:
    """Fill the parts of a ring, and nothing beside them, with what looks like ciphertext."""
    for at, length in ((0, 16 * num), (AVAIL, 6 + 2 * num), (USED, 6 + 8 * num)):
        os.pwrite(fd, hashlib.shake_256(bytes([at >> 8])).digest(length), at)


# ---- E: a queue that broke ----------------------------------------------------------------


def test_a_broken_ring_of_noise_looks_encrypted(caplog: pytest.LogCaptureFixture) -> None:
    """Device, queue, GPA, index, zero bytes and what to do, on one line behind the plain one."""

    async def breaks() -> None:
        async with attached(name="vda") as (wire, fd):
            noise(fd)
            wire.queue.break_ring(AHEAD)
            assert wire.device.guest == GuestCounters(ring_looks_encrypted=1)

    uvloop.run(breaks())
    plain, hint = (one.getMessage() for one in caplog.records if one.levelno == logging.ERROR)
    assert plain.startswith("vda: queue 0 is broken: avail index")
    zeroes = sum(
        hashlib.shake_256(bytes([at >> 8])).digest(length).count(0)
        for at, length in ((0, 2048), (AVAIL, 262), (USED, 1030))
    )
    idx = int.from_bytes(hashlib.shake_256(b"\x10").digest(4)[2:], "little")
    assert hint.startswith("vda: queue 0: the ring at GPA 0x0 reads as random bytes")
    assert f"(avail idx {idx:#x}, {zeroes} zero bytes of {TOTAL})" in hint
    assert "iommu_platform=on,disable-legacy=on" in hint
    assert "\n" not in hint


@pytest.mark.parametrize(
    "fault",
    [Fault(reason.text, 0, 7) for reason in Reason],
    ids=[reason.name for reason in Reason],
)
def test_whatever_broke_it(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    """A ciphertext breaks a queue in any way; memory that vanished is the one that has no look."""

    async def breaks() -> None:
        async with attached() as (wire, fd):
            noise(fd)
            wire.queue.break_ring(fault)

    uvloop.run(breaks())
    assert (ENCRYPTED in caplog.text) is (fault.reason != Reason.MEMORY_GONE.text)


@pytest.mark.parametrize(("num", "length"), [(NUM, 16 * NUM - 600), (8, None)])
def test_a_ring_that_is_no_ciphertext(
    num: int, length: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """One with some zeroes, or too short to judge: broken, and no more is said."""

    async def breaks() -> None:
        async with attached(num) as (wire, fd):
            noise(fd, num)
            if length is not None:
                os.pwrite(fd, bytes(16 * num - length), length)
            wire.queue.break_ring(AHEAD)

    uvloop.run(breaks())
    assert "queue 0 is broken" in caplog.text
    assert ENCRYPTED not in caplog.text


def test_memory_that_is_gone_when_it_is_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    """It may vanish between the break and the look: no signal, no hint."""

    async def breaks() -> None:
        async with attached() as (wire, fd):
            noise(fd)
            os.ftruncate(fd, USED)
            wire.queue.break_ring(AHEAD)

    uvloop.run(breaks())
    assert "queue 0 is broken" in caplog.text
    assert ENCRYPTED not in caplog.text


def test_a_ring_that_was_reset_is_not_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    """What is said of it comes late: there is no ring any more."""

    async def breaks() -> None:
        async with attached() as (wire, fd):
            noise(fd)
            queue = wire.queue
            await wire.acked(34)
            queue.break_ring(AHEAD)

    uvloop.run(breaks())
    assert ENCRYPTED not in caplog.text


def test_each_start_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The same start not twice, the next one again."""

    async def breaks() -> None:
        async with attached() as (wire, fd):
            noise(fd)
            queue = wire.queue
            queue.break_ring(AHEAD)
            queue.break_ring(AHEAD)
            assert caplog.text.count(ENCRYPTED) == 1
            await wire.ask(11, struct.pack("=II", 0, 0))
            await begin(wire, 0)
            queue.break_ring(AHEAD)

    uvloop.run(breaks())
    assert caplog.text.count(ENCRYPTED) == 2


# ---- E: an address with a bit too many ----------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.TABLE_ADDRESS, Reason.STATUS_ADDRESS])
@pytest.mark.parametrize("bits", [(47,), (51,), (47, 51)])
def test_an_address_with_a_privacy_bit(
    bits: tuple[int, ...], reason: Reason, caplog: pytest.LogCaptureFixture
) -> None:
    """The bit is named, with the address and what it would be without."""
    address = 0x4321 | sum(1 << bit for bit in bits)

    async def breaks() -> None:
        async with attached() as (wire, _):
            wire.queue.break_ring(Fault(reason.text, 3, address))
            wire.queue.break_ring(Fault(reason.text, 3, address))
            assert wire.device.guest == GuestCounters(cbit_address=2)

    uvloop.run(breaks())
    what = "indirect table" if reason is Reason.TABLE_ADDRESS else "status byte"
    named = f"bit{'s' if len(bits) > 1 else ''} " + " and ".join(map(str, bits))
    line = f"queue 0: the {what} at {address:#x} is outside guest memory, and 0x4321, the same "
    assert f"{line}without {named}, is inside" in caplog.text
    assert caplog.text.count(BIT) == 1


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        (Reason.STATUS_ADDRESS, 0x4321 | 1 << 50),
        (Reason.STATUS_ADDRESS, REGION_SIZE | 1 << 51),
        (Reason.AVAIL_INDEX, 0x4321 | 1 << 51),
    ],
)
def test_another_address_is_no_privacy_bit(
    reason: Reason, value: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Another bit, an address that is outside without it too, a value that is no address."""

    async def breaks() -> None:
        async with attached() as (wire, _):
            wire.queue.break_ring(Fault(reason.text, 3, value))

    uvloop.run(breaks())
    assert BIT not in caplog.text


def test_a_ring_at_an_address_with_a_privacy_bit(caplog: pytest.LogCaptureFixture) -> None:
    """Said when the front-end names the place, which no region holds; it is refused as ever."""

    async def begins() -> None:
        async with attached() as (wire, _):
            wire.tell(8, struct.pack("=II", 1, NUM))
            wire.tell(9, addresses(1, UVA | 1 << 51))
            wire.tell(18, struct.pack("=II", 1, 1))
            assert await wire.acked(12, u64(1), [os.eventfd(0)]) == errno.EINVAL

    uvloop.run(begins())
    line = f"queue 1: the ring at {UVA | 1 << 51:#x} is outside guest memory, and {UVA:#x}, "
    assert f"{line}the same without bit 51, is inside" in caplog.text
    assert caplog.text.count(BIT) == 1


def sample(address: int, role: Role = Role.WRITABLE, *, outside: bool = True) -> Sample:
    """Return what the data plane says of one descriptor."""
    return Sample(chain=0, iova=address, length=512, role=role, outside=outside)


@pytest.fixture
def judged(wanted: Wanted) -> Iterator[tuple[Detector, Ring, GuestCounters]]:
    """Return a detector, a ring of its own and what it counts."""
    log, counters = Log(__name__, "vda"), GuestCounters()
    table = RegionTable().add(wanted).table
    blk = BlkDevice(capacity_sectors=8)
    terms = Terms(features=0, space=AddressSpace.build(table), blk=blk, writethrough=False)
    made = FakeEngine().queue(0, on_broken=lambda: None)
    keeper = Keeper(
        0,
        make_queue=lambda: made,
        may_run=lambda: True,
        on_dead=lambda: None,
        drain_seconds=1.0,
        log=log,
    )
    ring = Ring(0, keeper=keeper, on_miss=lambda _: None, on_start=lambda: None, log=log)
    yield Detector([ring], lambda: terms, log, counters=counters, hints=True), ring, counters
    table.regions[0].mapping.release()


@pytest.fixture
def wanted() -> Wanted:
    """Return a region of a page at 4 GiB."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4096)
    return Wanted(place=Place(gpa=1 << 32, size=4096, uva=UVA), mmap_offset=0, fd=fd)


@pytest.mark.parametrize(
    ("role", "what"), [(Role.TABLE, "indirect table"), (Role.READABLE, "buffer")]
)
def test_samples_outside_memory_are_judged(
    judged: tuple[Detector, Ring, GuestCounters],
    role: Role,
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each is counted, the first one told; what is in memory or far away says nothing."""
    detector, ring, counters = judged
    address = 1 << 32 | 1 << 47 | 0x800
    near = [sample(1 << 32 | 0x800, outside=False), sample(1 << 32), sample(1 << 51), sample(0)]
    detector.saw(ring, near)
    assert counters == GuestCounters()
    detector.saw(ring, [*near, sample(address, role), sample(address)])
    assert counters == GuestCounters(cbit_address=2)
    line = f"vda: queue 0: the {what} at {address:#x} is outside guest memory, and 0x100000800, "
    assert f"{line}the same without bit 47" in caplog.text
    assert caplog.text.count(BIT) == 1


@pytest.mark.parametrize("sampled_first", [True, False])
def test_an_address_that_breaks_its_queue_counts_once(
    judged: tuple[Detector, Ring, GuestCounters],
    sampled_first: bool,  # noqa: FBT001 - by name
) -> None:
    """Its sample and the fault tell of the same one, whichever comes first; the next is another."""
    detector, ring, counters = judged
    address = 1 << 32 | 1 << 47 | 0x800
    fault = Fault(Reason.STATUS_ADDRESS.text, 0, address)
    if sampled_first:
        detector.saw(ring, [sample(address)])
    detector.broken(ring, fault)
    if not sampled_first:
        detector.saw(ring, [sample(address)])
    assert counters == GuestCounters(cbit_address=1)
    ring.starts += 1
    detector.broken(ring, fault)
    assert counters == GuestCounters(cbit_address=2)


def test_samples_behind_an_iommu_are_not(judged: tuple[Detector, Ring, GuestCounters]) -> None:
    """An IOVA may have any bit."""
    detector, ring, counters = judged
    ring.translated = True
    detector.saw(ring, [sample(1 << 32 | 1 << 47)])
    assert counters == GuestCounters()
