"""
The history of one sector, power cuts included.

Between two cuts a sector is a register (`register`).  What a cut leaves is what a read would have
returned at some time between the begin of the last flush and the cut: older contents were stable,
and of what came later any may be the last that was kept.  It is not known until somebody reads it,
perhaps only behind further cuts.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import attrgetter

from vhostblk.guest.history.record import ZEROES, Discarded, Kind, Operation
from vhostblk.guest.history.register import FOREVER, Clash, Step, Walls, find_clash

BEFORE = 0.0
"""When the first contents were there: before everything."""


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """What stands for a request where none was made: what a sector holds at a certain time."""

    what: str

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True)
class Era:
    """
    The time between two power cuts.

    Args:
        begin: When.
        end: At the cut, or ``FOREVER``.
        stable: At a cut: what was done before this time is kept.
    """

    begin: float
    end: float
    stable: float


@dataclass(slots=True)
class _Part:
    """
    What happened to a sector in an era.

    Args:
        era: When.
        writes: And zeroes, and discards that leave old contents or zeros.
        reads: Those that returned something.
        discards: Behind which anything may be read.
        first: What it held at the begin, where that is known.
        lost: When it may have held anything.
    """

    era: Era
    writes: list[Step] = field(default_factory=list)
    reads: list[Step] = field(default_factory=list)
    discards: list[Step] = field(default_factory=list)
    first: Step | None = None
    lost: "_Lost | None" = None


class Sector:
    """
    One sector.

    Args:
        eras: Between cuts, in order.
        zeroes: It holds zeros at first; else that is not known.
        discarded: What it may read as behind a discard.
    """

    def __init__(self, eras: Sequence[Era], *, zeroes: bool, discarded: Discarded) -> None:
        self._parts = [_Part(era) for era in eras]
        self._discarded = discarded
        self._writers: dict[bytes, int] = {}
        if zeroes:
            self._parts[0].first = Step(Contents("zeros at first"), BEFORE, BEFORE, ZEROES)

    def add(self, one: Operation, era: int, value: bytes) -> None:
        """Add what an operation that began in an era wrote or returned."""
        part = self._parts[era]
        ended = one.end is not None and one.end < part.era.end
        end = float(one.end) if one.end is not None and ended else part.era.end
        sure = one.ok and ended
        if one.kind is Kind.READ:
            if sure:
                part.reads.append(Step(one, one.begin, end, value))
        elif one.kind is Kind.DISCARD and self._discarded == "anything":
            part.discards.append(Step(one, one.begin, end, value))
        else:
            # One that failed may take effect late; what is discarded may stay.
            late = end if sure else part.era.end
            kept = sure and one.kind is not Kind.DISCARD
            part.writes.append(Step(one, one.begin, late, value, sure=kept))
            self._writers[value] = self._writers.get(value, 0) + 1

    def find_clash(self) -> Clash | None:
        """Look for what cannot have happened; see ``register.find_clash``."""
        for part in self._parts:
            part.lost = _Lost(part.discards, part.writes)
            part.reads = [read for read in part.reads if not part.lost.excuses(read)]
        return self._find_strange() or self._look_back() or self._find_clash()

    def _find_strange(self) -> Clash | None:
        """Find reads of what nobody wrote in the era; the first tells what was there before."""
        for part in self._parts:
            here: dict[bytes, float] = {}
            for step in part.writes:
                here[step.value] = min(step.begin, here.get(step.value, FOREVER))
            for read in part.reads:
                if here.get(read.value, FOREVER) < read.end:
                    continue
                if part.first is not None and part.first.value == read.value:
                    continue
                over = part.first or _overwritten(part, read)
                if over is not None:
                    return Clash("a read returned what nobody wrote there", read, (over,))
                part.first = self._held(read.value, part)
        return None

    def _look_back(self) -> Clash | None:
        """What a cut has left was there before it."""
        for part, after in zip(self._parts[-2::-1], self._parts[:0:-1], strict=True):
            if after.first is None:
                continue
            what = Contents(f"what the power cut at {part.era.end:.0f} left, as read later")
            left = Step(what, part.era.stable, part.era.end, after.first.value)
            if part.lost is not None and part.lost.excuses(left):
                continue
            part.reads.append(left)
            if any(step.value == left.value for step in part.writes):
                continue
            if part.first is None:
                part.first = self._held(left.value, part)
            elif part.first.value != left.value:
                return Clash("a power cut left what nobody wrote", left, (part.first,))
        return None

    def _find_clash(self) -> Clash | None:
        for part in self._parts:
            writes = list(part.writes)
            if part.first is not None:
                writes.append(part.first)
            else:
                writes += self._perhaps(part)
            if clash := find_clash(writes, part.reads):
                return clash
        return None

    def _perhaps(self, part: _Part) -> list[Step]:
        # Zeros, or what was written more than once, may have been there before.
        what = Contents("what it held at first, perhaps")
        at = part.era.begin
        values = {step.value for step in part.writes}
        often = (v for v in values if v == ZEROES or self._writers[v] > 1)
        return [Step(what, at, at, value, sure=False) for value in often]

    def _held(self, value: bytes, part: _Part) -> Step:
        return Step(Contents("what it held at first"), part.era.begin, part.era.begin, value)


def _overwritten(part: _Part, read: Step) -> Step | None:
    """Return a write that replaced, before *read*, what was there at first."""
    sure = (step for step in part.writes if step.sure)
    first = min(sure, key=attrgetter("end"), default=None)
    return first if first is not None and first.end < read.begin else None


class _Lost:
    """
    When nobody can say what a sector holds.

    Args:
        discards: Behind each of them, until a write that certainly came later.
        writes: All.
    """

    def __init__(self, discards: Sequence[Step], writes: Sequence[Step]) -> None:
        self._discards = sorted(discards, key=attrgetter("begin"))
        self._begins = [discard.begin for discard in self._discards]
        self._ends = list(accumulate((discard.end for discard in self._discards), max))
        sure = (step for step in writes if step.sure and discards)
        self._walls = Walls((step.begin, step.end, step) for step in sure)

    def excuses(self, read: Step) -> bool:
        """Tell whether *read* may return anything."""
        at = bisect_left(self._begins, read.end)
        return bool(at) and self._walls.between(self._ends[at - 1], read.begin) is None


def make_eras(cuts: Sequence[int], operations: Sequence[Operation], *, through: bool) -> list[Era]:
    """
    Divide the time by the power cuts.

    Args:
        cuts: When.
        operations: Among them the flushes.
        through: Every write is stable when it ends.
    """
    flushes = [one for one in operations if one.kind is Kind.FLUSH and one.ok]
    eras, begin = [], BEFORE
    for cut in cuts:
        done = (one.begin for one in flushes if one.end is not None and begin < one.end < cut)
        stable = float(cut) if through else max(done, default=begin)
        eras.append(Era(begin, float(cut), max(stable, begin)))
        begin = float(cut)
    return [*eras, Era(begin, FOREVER, FOREVER)]
