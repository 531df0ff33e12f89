"""
Whether reads and writes of one sector can have happened one after the other.

Each took effect at one point in time between its begin and its end.  Where every value was written
once, this is decided for good: all that is known of a value, its write and the reads that returned
it, lies in one zone of time, and the zones must be such that values can follow each other (Gibbons
and Korach, "Testing shared memories", 1997).  A value that was written more than once, as zeros
are, is checked read by read: some write must explain it, with no other one certainly in between.
What is reported is wrong for certain; of the second kind not all that is wrong is found.

Everything is sorting and bisection: n log n for n steps.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import attrgetter

FOREVER = math.inf
_FEW = 8
"""Up to so many values that were written more than once, each is held against the others."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """
    One request, as one sector sees it.

    Args:
        name: Whatever the caller wants to find in the answer.
        begin: It took effect after this.
        end: And before this; of a write that need not end in time: ``FOREVER``.
        value: What was written, or read.
        sure: It took effect (of a write; a read is sure).
    """

    name: object
    begin: float
    end: float
    value: bytes
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Clash:
    """
    Steps that cannot all have happened.

    Args:
        why: In words.
        culprit: The step at which it shows, a read if there is one.
        others: What it contradicts.
    """

    why: str
    culprit: Step
    others: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Zone:
    """
    All that is known of a value that was written once.

    Args:
        write: It.
        first: The step that ended first; the value was there before that.
        last: The step that began last; the value was there after that.
    """

    write: Step
    first: Step
    last: Step

    @property
    def start(self) -> float:
        return self.first.end

    @property
    def stop(self) -> float:
        return self.last.begin


def find_clash(writes: Sequence[Step], reads: Sequence[Step]) -> Clash | None:
    """
    Look for a contradiction.

    Args:
        writes: All of them; what the sector held at first is one, too.
        reads: Each has a value of *writes*.

    Returns:
        One, if there is any that this can find.
    """
    written, returned = _by_value(writes), _by_value(reads)
    zones, often = [], []
    for value, same in written.items():
        seen = returned.get(value, [])
        if len(same) > 1:
            often.append(value)
        elif seen or same[0].sure:
            early = next((read for read in seen if read.end < same[0].begin), None)
            if early is not None:
                return Clash("a read returned what was written only later", early, (same[0],))
            everything = [same[0], *seen]
            first = min(everything, key=attrgetter("end"))
            zones.append(_Zone(same[0], first, max(everything, key=attrgetter("begin"))))
    certain = _Certain([zone for zone in zones if zone.start < zone.stop])
    return (
        certain.find_overlap()
        or _first(certain.find_inside(zone) for zone in zones if zone.start >= zone.stop)
        or _find_unexplained(certain, zones, often, written, returned)
    )


class _Certain:
    """
    Times in which it is certain what the sector held.

    Args:
        zones: Those whose value was there from ``start`` to ``stop``.
    """

    def __init__(self, zones: list[_Zone]) -> None:
        self._zones = sorted(zones, key=attrgetter("start"))
        self._starts = [zone.start for zone in self._zones]

    def find_overlap(self) -> Clash | None:
        for one, other in pairwise(self._zones):
            if other.start < one.stop:
                reads = sorted((one.last, other.last), key=attrgetter("begin"))
                others = (one.write, one.first, other.write, other.first, *reads[:-1])
                return Clash("a value came back that had been replaced", reads[-1], _once(others))
        return None

    def find_inside(self, zone: _Zone) -> Clash | None:
        around = self.around(zone.stop)
        if around is None or zone.start >= around.stop:
            return None
        others = (around.write, around.first, zone.write, zone.first, zone.last)
        why = "a read returned what had been overwritten"
        return Clash(why, around.last, _once(others))

    def around(self, time: float) -> _Zone | None:
        """Return the zone that has *time* inside."""
        at = bisect_left(self._starts, time) - 1
        return self._zones[at] if at >= 0 and time < self._zones[at].stop else None

    def between(self, after: float, before: float) -> _Zone | None:
        """Return a zone that lies between two times."""
        at = bisect_left(self._starts, after)
        inside = at < len(self._zones) and self._zones[at].stop <= before
        return self._zones[at] if inside else None

    def earliest(self, time: float) -> float:
        """Return when something else can have been there, from *time* on."""
        zone = self.around(time)
        return time if zone is None else zone.stop

    def latest(self, time: float) -> float:
        """Return when something else can have been there, up to *time*."""
        zone = self.around(time)
        return time if zone is None else zone.start


class Walls:
    """
    What certainly happened within some time, and replaced what was there.

    Args:
        steps: Each with its bounds in time.
    """

    def __init__(self, steps: Iterable[tuple[float, float, Step]]) -> None:
        rows = sorted(steps, key=lambda row: row[0])
        self._begins = [begin for begin, _, _ in rows]
        # Of those that begin here or later, the one that ends first.
        self._soonest = rows[:]
        for i in range(len(rows) - 2, -1, -1):
            if self._soonest[i + 1][1] < rows[i][1]:
                self._soonest[i] = self._soonest[i + 1]

    def between(self, after: float, before: float) -> Step | None:
        """Return one that began and ended between two times."""
        at = bisect_right(self._begins, after)
        if at < len(self._soonest) and self._soonest[at][1] < before:
            return self._soonest[at][2]
        return None


def _find_unexplained(
    certain: _Certain,
    zones: Sequence[_Zone],
    often: Sequence[bytes],
    written: dict[bytes, list[Step]],
    returned: dict[bytes, list[Step]],
) -> Clash | None:
    once = [(zone.write.begin, zone.start, zone.write) for zone in zones]
    shared = Walls(once)
    for value in often:
        # What was certainly written although something else was there all the time.
        sure = [step for step in written[value] if step.sure]
        if clash := _first(certain.find_inside(_Zone(step, step, step)) for step in sure):
            return clash
        walls = shared
        if 1 < len(often) <= _FEW:
            others = (one for other in often if other != value for one in written[other])
            walls = Walls([*once, *((one.begin, one.end, one) for one in others if one.sure)])
        sources = _Sources(certain, written[value])
        if clash := _first(sources.explain(read, walls) for read in returned.get(value, [])):
            return clash
    return None


class _Sources:
    """
    Writes of one value.

    Args:
        certain: When other values were there.
        writes: More than one.
    """

    def __init__(self, certain: _Certain, writes: Iterable[Step]) -> None:
        self._certain = certain
        rows = [(certain.latest(one.end), certain.earliest(one.begin), one) for one in writes]
        self._rows = sorted((row for row in rows if row[1] <= row[0]), key=lambda row: row[0])
        self._lasts = [last for last, _, _ in self._rows]
        backwards = accumulate((first for _, first, _ in reversed(self._rows)), min)
        self._firsts = list(backwards)[::-1]

    def explain(self, read: Step, walls: Walls) -> Clash | None:
        """Return why no write explains *read*, unless one does."""
        first, last = self._certain.earliest(read.begin), self._certain.latest(read.end)
        if first > last:
            zone = self._certain.around(read.begin)
            others = () if zone is None else _once((zone.write, zone.first, zone.last))
            return Clash("a read returned something else than what was there", read, others)
        at = bisect_left(self._lasts, first)
        if at < len(self._rows) and self._firsts[at] < last:
            return None
        if not at:
            sources = tuple(row[2] for row in self._rows[:1])
            return Clash("a read returned what was not there yet", read, sources)
        before, _, source = self._rows[at - 1]
        zone = self._certain.between(before, first)
        wall = walls.between(before, first) if zone is None else zone.write
        if wall is None:
            return None
        return Clash("a read returned what had been overwritten", read, (source, wall))


def _by_value(steps: Iterable[Step]) -> dict[bytes, list[Step]]:
    found: dict[bytes, list[Step]] = {}
    for step in steps:
        found.setdefault(step.value, []).append(step)
    return found


def _first(clashes: Iterable[Clash | None]) -> Clash | None:
    return next((clash for clash in clashes if clash is not None), None)


def _once(steps: Iterable[Step]) -> tuple[Step, ...]:
    return tuple(dict.fromkeys(steps))
