"""
Which of what may be there is there: a power cut, chosen by a seed.

The same changes in the same order, the same number and the same seed: the same cut, on any machine
and with any version of Python, as only `random.Random.random` is used, which never changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from random import Random

from vhostblk.disk.power import Cache, Held, Kind, Piece
from vhostblk.disk.ranges import Range, both
from vhostblk.errors import VhostBlkError

SECTOR = 512
MAX_SEED = (1 << 63) - 1
_PER_CENT = 100
_TORN = 0.3
_TEAR_AGAIN = 0.5


class Lose(StrEnum):
    """How what is not flushed is lost."""

    ANY = "any"
    ALL = "all"
    NONE = "none"
    LATE = "late"
    EARLY = "early"
    EACH = "each"
    ONE = "one"
    OTHERS = "others"


_WEIGHTS = {
    Lose.EACH: 35,
    Lose.LATE: 15,
    Lose.EARLY: 15,
    Lose.ONE: 13,
    Lose.OTHERS: 12,
    Lose.ALL: 10,
}
"""How often each is what `Lose.ANY` becomes, of 100."""


class Fate(StrEnum):
    """What a cut does to a change."""

    KEPT = "kept"
    LOST = "lost"
    TORN = "torn"


@dataclass(frozen=True, slots=True)
class Losing:
    """
    How a cut chooses.

    Args:
        lose: What is lost; see `Lose`.
        tear: Some are there in part.
        grain: Bytes that are there or not as a whole; a power of two.
    """

    lose: Lose = Lose.ANY
    tear: bool = True
    grain: int = SECTOR


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What became of one change.

    Args:
        number: The change's.
        kind: What it is.
        offset: First byte.
        length: Bytes.
        fate: What became of it.
        kept: What of it has reached the medium, though something may lie over it.
        in_flight: It had not completed.
    """

    number: int
    kind: Kind
    offset: int
    length: int
    fate: Fate
    kept: Sequence[Range]
    in_flight: bool

    def __str__(self) -> str:
        """Say it in one line."""
        where = f"request {self.number}: {self.kind} of {self.length} bytes at {self.offset}"
        told = f"{where}{' (in flight)' if self.in_flight else ''} {self.fate}"
        if self.fate is not Fate.TORN:
            return told
        return f"{told}: kept " + ", ".join(f"{a}-{b - 1}" for a, b in self.kept)


@dataclass(frozen=True, slots=True)
class Cut:
    """
    A power cut.

    Args:
        seed: What chose it.
        pieces: What reaches the medium, in this order.
        verdicts: Of all that was not flushed, in the order it was submitted.
    """

    seed: int
    pieces: Sequence[Piece]
    verdicts: Sequence[Verdict]

    def count(self, fate: Fate) -> int:
        """Return how many have it."""
        return sum(verdict.fate is fate for verdict in self.verdicts)


def cut(cache: Cache, losing: Losing, *, number: int, seed: int) -> Cut:
    """
    Choose what a cut leaves.

    Args:
        cache: What may be there; stays as it is.
        losing: How.
        number: The request it comes at: part of what is chosen by.
        seed: From 0 to `MAX_SEED`.
    """
    dice = Dice(number << 64 | seed)
    held = cache.held
    kept = _kept(held, losing, dice)
    landing = sorted(zip(_points(held, cache.now, dice), range(len(held)), strict=True))
    pieces = [piece for _, i in landing for piece in held[i].pieces(both(kept[i], held[i].left))]
    verdicts = [_verdict(h, ranges) for h, ranges in zip(held, kept, strict=True) if not h.stable]
    return Cut(seed, pieces, verdicts)


class Dice:
    """
    What comes of a seed.

    Args:
        seed: Any whole number.
    """

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)  # noqa: S311 - it is to be foreseen

    def chance(self) -> float:
        """Return a number from 0 up to, and without, 1."""
        return self._random.random()

    def below(self, n: int) -> int:
        """Return a whole number from 0 up to, and without, *n*."""
        return int(self.chance() * n)

    def weighed(self, weights: Mapping[Lose, int]) -> Lose:
        """Return one of those, as often as it weighs."""
        at = self.below(sum(weights.values()))
        for lose, weight in weights.items():
            at -= weight
            if at < 0:
                return lose
        raise AssertionError("unreachable")


def parse_lose(text: str) -> Lose:
    """
    Read how a cut loses.

    Raises:
        VhostBlkError: There is no such way.
    """
    try:
        return Lose(text)
    except ValueError:
        raise VhostBlkError(f"lose={text}: write lose= and one of {', '.join(Lose)}") from None


def _points(held: Sequence[Held], now: int, dice: Dice) -> list[float]:
    """Say when each lands: between its two ends, so the order of any two is one there can be."""
    return [h.begin + dice.chance() * ((h.end or now + 1) - h.begin) for h in held]


def _kept(held: Sequence[Held], losing: Losing, dice: Dice) -> list[list[Range]]:
    """Return what of each reaches the medium."""
    whole = [[(h.offset, h.offset + h.length)] for h in held]
    keeps = _keeps(len(held), losing.lose, dice)
    torn = _TORN if losing.tear and losing.lose not in {Lose.ALL, Lose.NONE} else 0.0
    torn *= dice.below(2)
    kept: list[list[Range]] = []
    for ranges, keep in zip(whole, keeps, strict=True):
        if dice.chance() < torn:
            kept.append(_torn(*ranges[0], losing.grain, dice))
        else:
            kept.append(ranges if keep else [])
    return kept


def _keeps(count: int, lose: Lose, dice: Dice) -> list[bool]:
    """Say of each whether it is kept."""
    if lose is Lose.ANY:
        lose = dice.weighed(_WEIGHTS)
    at, chance = dice.below(count + 1), dice.chance()
    match lose:
        case Lose.LATE:
            return [i < at for i in range(count)]
        case Lose.EARLY:
            return [i >= at for i in range(count)]
        case Lose.ONE:
            return [i != at for i in range(count)]
        case Lose.OTHERS:
            return [i == at for i in range(count)]
        case Lose.EACH | Lose.ANY:
            return [dice.chance() < chance for _ in range(count)]
    return [lose is Lose.NONE] * count


def _torn(start: int, end: int, grain: int, dice: Dice) -> list[Range]:
    """Keep every other one of a few parts of a range."""
    first = start // grain + 1
    borders = -(-end // grain) - first
    cut_at = {first + dice.below(borders) for _ in range(_few(borders, dice))} if borders else ()
    edges = [start, *(at * grain for at in sorted(cut_at)), end]
    return list(pairwise(edges))[dice.below(2) :: 2]


def _few(most: int, dice: Dice) -> int:
    """Return a number from 1 to *most*; small ones more often, as drives are torn at one place."""
    few = 1
    while few < most and dice.chance() < _TEAR_AGAIN:
        few += 1
    return few


def _verdict(held: Held, kept: list[Range]) -> Verdict:
    whole = [(held.offset, held.offset + held.length)]
    fate = Fate.KEPT if kept == whole else Fate.TORN if kept else Fate.LOST
    return Verdict(
        held.number,
        held.change.kind,
        held.offset,
        held.length,
        fate,
        tuple(kept),
        in_flight=held.end is None,
    )
