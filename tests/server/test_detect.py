"""
What is noticed of a guest, by a server without a data plane.

Whole guests with both data planes: `test_symptoms`.
"""

import asyncio
import errno
import hashlib
import logging
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import uvloop
from frontend_bytes import u64
from server_kit.wire import QUIET, REGION_SIZE, UVA, Wire, addresses, memfd, region, wired

from vhostblk.engine.api import Counters, Fault
from vhostblk.engine.reason import Reason
from vhostblk.server import detect

NUM = 128
TOTAL = 26 * NUM + 12
AVAIL, USED = 0x1000, 0x2000
ENCRYPTED, ZEROES = "looks encrypted", "reads as zeroes"
NO_DRIVER, NONSENSE, BIT = "no driver has set up a ring", "makes sense", "the same without"
AHEAD = Fault(Reason.AVAIL_INDEX.text, 0, 0x9C3F)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(detect, "LOOKS", (QUIET / 4,) * 4)
    monkeypatch.setattr(detect, "DRIVER_SECONDS", QUIET / 4)
    caplog.set_level(logging.INFO)


@asynccontextmanager
async def attached(num: int = NUM, *, name: str = "device") -> AsyncIterator[tuple[Wire, int]]:
    """Give a front-end whose ring 0 runs, and the file of its memory."""
    with memfd(REGION_SIZE) as fd:
        async with wired(name=name) as wire:
            await wire.negotiate()
            assert await wire.acked(37, region(), [os.dup(fd)]) == 0
            await begin(wire, 0, num)
            yield wire, fd


async def begin(wire: Wire, index: int, num: int = NUM) -> None:
    """Start a ring."""
    await wire.set_up(index, num)
    assert await wire.acked(18, struct.pack("=II", index, 1)) == 0


async def said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until it is in the log."""
    for _ in range(1000):
        if text in caplog.text:
            return
        await asyncio.sleep(QUIET / 10)
    raise AssertionError(caplog.text)


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


# ---- Z: rings that read as zeroes ---------------------------------------------------------


def test_kicks_without_requests_are_explained(caplog: pytest.LogCaptureFixture) -> None:
    """Kicked, and all zero: both causes, once for each start of each queue."""

    async def kick() -> None:
        async with attached() as (wire, _):
            first = wire.queue
            await begin(wire, 1)
            wire.queue.done = Counters(kicks=1)
            first.done = Counters(kicks=7)
            await said(caplog, "queue 0: kicked 7 times")
            await said(caplog, "queue 1: kicked 1 time,")
            await asyncio.sleep(QUIET)
            assert caplog.text.count(ZEROES) == 2
            await wire.ask(11, struct.pack("=II", 0, 0))
            await begin(wire, 0)
            first.done = Counters(kicks=9)
            await said(caplog, "queue 0: kicked 2 times")
            await asyncio.sleep(QUIET)
            assert caplog.text.count(ZEROES) == 3

    uvloop.run(kick())
    assert "its ring at GPA 0x0 reads as zeroes" in caplog.text
    assert "share=on" in caplog.text
    assert "SEV-SNP, TDX" in caplog.text


def test_a_kick_may_come_late(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver that asks for nothing for a while is looked at again, but not for ever."""
    monkeypatch.setattr(detect, "LOOKS", (QUIET / 4, QUIET / 2))

    async def kick(wait: float) -> None:
        async with attached() as (wire, _):
            await asyncio.sleep(wait)
            wire.queue.done = Counters(kicks=1)
            await asyncio.sleep(QUIET)

    uvloop.run(kick(QUIET * 2))
    assert ZEROES not in caplog.text
    uvloop.run(kick(QUIET / 2))
    assert ZEROES in caplog.text


@pytest.mark.parametrize("at", [0, 16 * NUM - 1, AVAIL + 2, AVAIL + 5 + 2 * NUM])
def test_a_ring_with_anything_in_it_is_shared(at: int, caplog: pytest.LogCaptureFixture) -> None:
    """One byte of the descriptors or the avail ring shows that we see what the driver writes."""

    async def kick() -> None:
        async with attached() as (wire, fd):
            os.pwrite(fd, b"\1", at)
            wire.queue.done = Counters(kicks=3)
            await asyncio.sleep(QUIET)

    uvloop.run(kick())
    assert ZEROES not in caplog.text


@pytest.mark.parametrize("at", [AVAIL + 6 + 2 * NUM, 16 * NUM, USED, USED + 5 + 8 * NUM])
def test_what_lies_beside_or_is_ours_does_not_count(
    at: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The used ring holds what we wrote; behind a part of a ring lies what is not ours to read."""

    async def kick() -> None:
        async with attached() as (wire, fd):
            os.pwrite(fd, b"\1", at)
            wire.queue.done = Counters(kicks=3)
            await said(caplog, ZEROES)

    uvloop.run(kick())


@pytest.mark.parametrize(
    "done",
    [
        Counters(),
        *(replace(Counters(kicks=3), **{name: 1}) for name in ("reads", "flushes", "get_ids")),
    ],
)
def test_a_guest_that_is_served_or_sleeps_is_left_alone(
    done: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that was served, or no kick at all, is no reason to speak."""

    async def wait() -> None:
        async with attached() as (wire, _):
            wire.queue.done = done
            await asyncio.sleep(QUIET)

    uvloop.run(wait())
    assert ZEROES not in caplog.text


def test_a_broken_ring_has_said_enough(caplog: pytest.LogCaptureFixture) -> None:
    """What is known to be broken is not called silent."""

    async def breaks() -> None:
        async with attached() as (wire, _):
            wire.queue.done = Counters(kicks=3)
            wire.queue.break_ring(Fault("head out of range", 3, 700))
            await asyncio.sleep(QUIET)

    uvloop.run(breaks())
    assert "queue 0 is broken" in caplog.text
    assert ZEROES not in caplog.text


# ---- N: no driver -------------------------------------------------------------------------


def test_a_driver_that_never_comes(caplog: pytest.LogCaptureFixture) -> None:
    """The config space was read and no ring set up: said once, for information."""

    async def wait() -> None:
        async with wired() as wire:
            await wire.negotiate()
            for _ in range(3):
                await wire.ask(24, config())
            await said(caplog, NO_DRIVER)
            await wire.ask(24, config())
            await asyncio.sleep(QUIET)

    uvloop.run(wait())
    (line,) = (one for one in caplog.records if NO_DRIVER in one.getMessage())
    assert line.levelno == logging.INFO
    assert "device must provide VIRTIO_F_ACCESS_PLATFORM" in line.getMessage()


@pytest.mark.parametrize("reads", [False, True])
def test_a_driver_that_comes(reads: bool, caplog: pytest.LogCaptureFixture) -> None:  # noqa: FBT001
    """A ring that was set up, or a config space nobody looked at: nothing is said."""

    async def wait() -> None:
        async with wired() as wire:
            await wire.negotiate()
            if reads:
                await wire.ask(24, config())
                await wire.plug()
                await wire.set_up()
                await wire.ask(24, config())
            await asyncio.sleep(QUIET)

    uvloop.run(wait())
    assert NO_DRIVER not in caplog.text


# ---- H: requests that make no sense -------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "told"),
    [
        (Counters(unsupported=32), True),
        (Counters(unsupported=10, malformed=8, errors=14), True),
        (Counters(unsupported=31), False),
        (Counters(unsupported=40, get_ids=1), False),
        (Counters(errors=40), False),
    ],
)
def test_requests_that_make_no_sense(
    done: Counters,
    told: bool,  # noqa: FBT001 - by name
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All of the first 32 are bad, and not as those of a failing disk are: not encryption."""

    async def ask() -> None:
        async with attached() as (wire, fd):
            os.pwrite(fd, b"\1", AVAIL + 2)
            wire.queue.done = done
            await asyncio.sleep(QUIET * 1.5)

    uvloop.run(ask())
    assert caplog.text.count(NONSENSE) == told
    if told:
        assert "no matter of encryption" in caplog.text
        assert f"({done.unsupported} of unknown type, {done.malformed} without" in caplog.text


def config() -> bytes:
    """GET_CONFIG of the capacity."""
    return struct.pack("=III", 0, 8, 0) + bytes(8)
