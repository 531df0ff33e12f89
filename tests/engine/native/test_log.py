"""The core marks the pages that the arithmetic of `vhostblk.memory.dirty` says, and no others."""

import ctypes
from collections.abc import Iterator
from random import Random

import pytest
from engine.driver import GPA, MEMORY, Lane, Memory
from engine.driver_split import split
from engine.harness import Rig

from vhostblk.engine.api import Busy
from vhostblk.errors import VhostBlkError
from vhostblk.memory.dirty import LOG_USED_BY_HOST, PAGE, DirtyLog, LogRegion, marked

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

from vhostblk.engine.native import NativeEngine

LOG = 1 << 16


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(lambda: NativeEngine(threaded=False))
    yield made
    made.close()


@pytest.fixture
def bits() -> "ctypes.Array[ctypes.c_ubyte]":
    return (ctypes.c_ubyte * LOG)()


def switch(rig: Rig, lane: Lane, log: DirtyLog | None) -> None:
    """Change the log of a running queue."""
    rig.set(lane, lambda queue: queue.set_log(log))
    rig.step()


def cut(memory: Memory, random: Random) -> tuple[LogRegion, ...]:
    """Cut guest memory into regions of any length, with holes, at any guest physical address."""
    regions, at, gpa = [], 0, random.randrange(1 << 20)
    while at < MEMORY:
        length = min(random.randrange(1, 400_000), MEMORY - at)
        if random.random() < 0.8:
            regions.append(LogRegion(memory.host + at, length, gpa))
        gpa += length + random.randrange(1 << 20)
        at += length
    return tuple(regions)


@pytest.mark.parametrize("seed", range(8))
def test_marks_exactly_what_was_written(
    rig: Rig, bits: "ctypes.Array[ctypes.c_ubyte]", seed: int
) -> None:
    """Reads and writes of any place and length, memory of any shape: the same set of pages."""
    random = Random(seed)
    lane = rig.lane()
    regions = cut(rig.memory, random)
    log = DirtyLog(
        address=ctypes.addressof(bits),
        length=random.choice((16, 64, LOG)),
        regions=regions,
        used_gpa=LOG_USED_BY_HOST,
    )
    switch(rig, lane, log)
    expected: set[int] = marked(bytes(bits))
    ring = split(lane)
    used = rig.memory.at(ring.used_ring)
    for _ in range(12):
        length, reads = 512 * random.randrange(1, 60), random.random() < 0.5
        index = ring.used_idx() % lane.size
        asked = lane.read(0, length) if reads else lane.write(0, bytes(length))
        rig.pump()
        assert asked.status == 0
        written = [(rig.memory.at(asked.status_at), 1), (used + 2, 2), (used + 4 + 8 * index, 8)]
        if reads:
            written.append((rig.memory.at(asked.data_at), length))
        expected = expected.union(*(log.pages(log.ranges(*one)) for one in written))
        assert marked(bytes(bits)) == expected


def test_marks_nothing_once_it_is_off(rig: Rig, bits: "ctypes.Array[ctypes.c_ubyte]") -> None:
    """And a log whose used ring is not wanted has nothing but data and status."""
    lane = rig.lane()
    region = LogRegion(rig.memory.host, MEMORY, GPA - GPA % PAGE - PAGE)
    log = DirtyLog(address=ctypes.addressof(bits), length=LOG, regions=(region,))
    switch(rig, lane, log)
    asked = lane.read()
    rig.pump()
    gpas = [(asked.data_at - PAGE, 512), (asked.status_at - PAGE, 1)]
    assert marked(bytes(bits)) == log.pages(gpas)
    switch(rig, lane, None)
    ctypes.memset(bits, 0, LOG)
    lane.read()
    rig.pump()
    assert marked(bytes(bits)) == set()


def test_refuses_what_cannot_be(rig: Rig, bits: "ctypes.Array[ctypes.c_ubyte]") -> None:
    """Regions that overlap are a bug of ours, and so is a queue that its worker owns."""
    lane = rig.lane()
    twice = (LogRegion(rig.memory.host, 4096, 0),) * 2
    log = DirtyLog(address=ctypes.addressof(bits), length=LOG, regions=twice)
    with pytest.raises(Busy):
        rig.call(lambda: lane.queue.set_log(log))
    rig.park(lane)
    with pytest.raises(VhostBlkError, match="dirty log"):
        rig.call(lambda: lane.queue.set_log(log))
    rig.call(lane.queue.run)
