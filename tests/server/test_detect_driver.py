"""
What is noticed of a driver that asks for nothing, never comes or makes no sense.

A server without a data plane; whole guests with both data planes: `test_symptoms`.
"""

import asyncio
import logging
import os
import struct
from dataclasses import replace

import pytest
import uvloop
from frontend_bytes import u64
from server_kit.rings import AVAIL, NUM, USED, attached, begin, said
from server_kit.wire import QUIET, wired

from vhostblk.engine.api import Counters, Fault
from vhostblk.server import detect
from vhostblk.server.guest_counters import GuestCounters
from vhostblk.server.place import Addresses

ZEROES, NO_DRIVER, NONSENSE = "reads as zeroes", "no driver has set up a ring", "makes sense"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(detect, "LOOKS", (QUIET / 4,) * 400)
    monkeypatch.setattr(detect, "DRIVER_SECONDS", QUIET / 4)
    caplog.set_level(logging.INFO)


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
            assert wire.device.guest == GuestCounters(zero_ring_kicks=8)
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


@pytest.mark.parametrize(("kicks", "told"), [(1, 0), (2, 1)])
def test_the_front_ends_own_kick_does_not_count(
    kicks: int, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    """QEMU signals each kick descriptor before it sends it, at every start of every queue."""

    async def kick() -> None:
        async with attached() as (wire, _):
            await wire.ask(11, struct.pack("=II", 0, 0))
            assert await wire.acked(12, u64(0), [os.eventfd(1)]) == 0
            wire.queue.done = Counters(kicks=kicks)
            await asyncio.sleep(QUIET)

    uvloop.run(kick())
    assert caplog.text.count("queue 0: kicked 1 time, but") == told
    assert caplog.text.count(ZEROES) == told


def test_a_queue_that_is_served_speaks_for_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """What the driver writes is seen: an empty ring is not used, whatever kicked it."""

    async def kick() -> None:
        async with attached() as (wire, _):
            wire.queue.done = Counters(reads=1, kicks=1)
            await begin(wire, 1)
            wire.queue.done = Counters(kicks=2)
            await asyncio.sleep(QUIET)

    uvloop.run(kick())
    assert ZEROES not in caplog.text


def test_a_kick_descriptor_that_is_no_eventfd_is_not_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody else's file may take its time to answer; a readable pipe is no greeting."""

    async def kick() -> None:
        async with attached() as (wire, _):
            await wire.ask(11, struct.pack("=II", 0, 0))
            ours, theirs = os.pipe()
            os.write(theirs, bytes(8))
            os.close(theirs)
            assert await wire.acked(12, u64(0), [ours]) == 0
            wire.queue.done = Counters(kicks=1)
            await said(caplog, ZEROES)

    uvloop.run(kick())


@pytest.mark.parametrize(("looks", "told"), [(1000, True), (3, False)])
def test_a_kick_may_come_late(
    looks: int,
    told: bool,  # noqa: FBT001 - by name
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A driver that asks for nothing for a while is looked at again, but not for ever."""
    monkeypatch.setattr(detect, "LOOKS", (QUIET / 20,) * looks)
    looked, enough = 0, asyncio.Event()
    look = detect.Detector._look

    def counting(detector: detect.Detector) -> None:
        nonlocal looked
        look(detector)
        looked += 1
        if looked == 3:
            enough.set()

    monkeypatch.setattr(detect.Detector, "_look", counting)

    async def kick() -> None:
        async with attached() as (wire, _):
            await enough.wait()
            wire.queue.done = Counters(kicks=1)
            if told:
                await said(caplog, ZEROES)
            await asyncio.sleep(QUIET)

    uvloop.run(kick())
    assert (ZEROES in caplog.text) is told


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


@pytest.mark.parametrize("comes", [False, True])
def test_a_driver_that_comes(comes: bool, caplog: pytest.LogCaptureFixture) -> None:  # noqa: FBT001
    """A ring that was set up, or a config space nobody looked at: nothing is said."""

    async def wait() -> None:
        async with wired() as wire:
            await wire.negotiate()
            if comes:
                await wire.plug()
                await wire.set_up()
                await wire.ask(24, config())
            await asyncio.sleep(QUIET)

    uvloop.run(wait())
    assert NO_DRIVER not in caplog.text


def test_a_driver_that_comes_in_time(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever was waited for is there."""

    async def wait() -> None:
        async with wired() as wire:
            detector = wire.attachment.detector
            nowhere = Addresses(desc=0, avail=0, used=0)
            detector.config_read()
            detector.set_up(wire.attachment.rings[0], nowhere)
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
