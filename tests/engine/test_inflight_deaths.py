"""
The reference engine dies between any two of its lines, and somebody goes on, on either engine.

What this does not prove: that the core can die anywhere (native/tests has it killed at every step),
and what a disk does that was killed with its back-end.
"""

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from engine.conftest import PACKED, SPLIT
from engine.driver import Asked
from engine.harness import FEATURES
from engine.tracked import Moment, Tracked

from vhostblk.spec.virtio_blk import RequestType, Status
from vhostblk.spec.virtio_ring import F_IN_ORDER

if TYPE_CHECKING:
    from _typeshed import TraceFunction

BOTH = SPLIT + PACKED
TRACED = ("split.py", "packed.py", "inflight_split.py", "inflight_packed.py", "service.py")


def moments(tracked: Tracked, act: Callable[[], object]) -> list[Moment]:
    """Return what ring and region looked like between any two lines of *act*, each once."""
    seen: dict[Moment, None] = {}

    def look(frame: FrameType, _event: str, _arg: object) -> "TraceFunction | None":
        if not frame.f_code.co_filename.endswith(TRACED):
            return None
        seen[tracked.moment()] = None
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        act()
    finally:
        sys.settrace(before)
    return list(seen)


def deaths(tracked: Tracked) -> Iterator[Moment]:
    """Yield each moment of its next pass; who has gone on from one is gone before the next."""
    lane, rig, region = tracked.lane, tracked.rig, tracked.region
    for moment in moments(tracked, rig.step):
        yield moment
        tracked.rig.close()
        tracked.lane, tracked.rig, tracked.region = lane, rig, region
        tracked.forget_death()
    tracked.close()


def go_on(tracked: Tracked, successor: str, moment: Moment, asked: list[Asked]) -> None:
    """Let *successor* go on from *moment*; every request comes back, once, when it has ended."""
    tracked.take_over(successor, *moment)
    for job in reversed(tracked.rig.take(tracked.lane)):
        before = len(tracked.lane.used())
        tracked.rig.finish(tracked.lane, job)
        tracked.rig.step()
        in_order = tracked.features & F_IN_ORDER
        assert in_order or len(tracked.lane.used()) == before + 1
    assert tracked.lane.queue.fault() is None
    assert sorted(name for name, _ in tracked.lane.used()) == sorted(one.head for one in asked)
    assert [tracked.follow(one).status for one in asked] == [Status.OK] * len(asked)
    assert tracked.region.in_flight() == []
    tracked.rig.park(tracked.lane)
    assert tracked.lane.queue.base() == tracked.lane.ring.base(len(asked))


def under_way(tracked: Tracked) -> list[Asked]:
    """Have four requests of different lengths under way, which fill the ring or not."""
    lane = tracked.lane
    asked = [lane.read(), lane.write(8), lane.ask(RequestType.FLUSH), lane.read(16)]
    tracked.rig.step()
    return asked


def finish(tracked: Tracked, *which: int) -> None:
    """End some of the requests that are under way."""
    jobs = tracked.rig.take(tracked.lane)
    for n in which:
        tracked.rig.finish(tracked.lane, jobs[n])


SCENES = {"one": (1,), "two": (3, 1), "first": (0, 1), "all": (2, 0, 1, 3)}


@pytest.mark.parametrize("features", [FEATURES, FEATURES | F_IN_ORDER], ids=["any", "in-order"])
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("param", BOTH)
def test_death_at_giving_back(param: str, scene: str, features: int) -> None:
    """
    Whatever was published of a batch when it died, its successor knows.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    successor, form = param.split("-")
    size = 11 if form == "packed" else 16
    tracked = Tracked("reference", packed=form == "packed", size=size, features=features)
    asked = under_way(tracked)
    finish(tracked, *SCENES[scene])
    for moment in deaths(tracked):
        go_on(tracked, successor, moment, asked)


@pytest.mark.parametrize("param", BOTH)
def test_death_at_taking(param: str) -> None:
    """
    A chain is taken, or it is not: nothing is in between.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    successor, form = param.split("-")
    tracked = Tracked("reference", packed=form == "packed")
    asked = [tracked.lane.read()]
    tracked.rig.step()
    asked += [tracked.lane.write(8), tracked.lane.ask(RequestType.FLUSH)]
    for moment in deaths(tracked):
        go_on(tracked, successor, moment, asked)


@pytest.mark.parametrize("param", BOTH)
def test_death_at_taking_what_was_used_before(param: str) -> None:
    """
    What its entry says of long ago does not put a chain in front of those taken before it.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    successor, form = param.split("-")
    tracked = Tracked("reference", packed=form == "packed")
    tracked.use_every_entry()
    tracked.lane.read(8)
    tracked.rig.step()
    tracked.lane.read(16)
    for moment in deaths(tracked):
        tracked.take_over(successor, *moment)
        jobs = tracked.rig.take(tracked.lane)
        assert [job.offset for job in jobs] == [4096, 8192]
        for job in jobs:
            tracked.rig.finish(tracked.lane, job)


@pytest.mark.parametrize("param", BOTH)
def test_death_at_recovery(param: str) -> None:
    """
    Who dies while it finds out what there was leaves it as it found it, or settled.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    successor, form = param.split("-")
    tracked = Tracked("reference", packed=form == "packed")
    asked = under_way(tracked)
    finish(tracked, 3, 1)
    half = moments(tracked, tracked.rig.step)
    ring, region_then = half[len(half) // 2]
    tracked.die("reference", run=False)
    tracked.rig.memory.write(tracked.lane.ring.span()[0], ring)
    tracked.region.bytes[:] = region_then
    tracked.rig.call(tracked.lane.queue.run)
    for moment in deaths(tracked):
        go_on(tracked, successor, moment, asked)
