"""
What may be there after a power cut, against the rules said sector by sector.

The oracle knows a history as times of begin and end, and nothing of how the cache works.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.disk.loss import Fate, Lose, Losing, cut
from vhostblk.disk.power import Cache, Change, Kind, Piece

SECTOR = 512
SECTORS = 3
FIRST = -1
"""The number of what the disk held at first."""


@dataclass
class Step:
    """A change, or a flush, and when it began and ended."""

    number: int
    first: int
    count: int
    kind: str
    begin: int
    end: int | None = None
    failed: bool = False

    def durable(self, flushes: "Sequence[Step]") -> bool:
        """Tell whether it is promised to be there."""
        if self.end is None or self.failed:
            return False
        end = self.end
        return self.kind == "fua" or any(f.end is not None and end < f.begin for f in flushes)


class History:
    """Feeds a cache, keeps a medium, and remembers all of it for the oracle."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.medium = [FIRST] * SECTORS
        self.steps: list[Step] = []
        self.flushes: list[Step] = []
        self.open: list[tuple[Step, int]] = []
        self.time = 0

    def tick(self) -> int:
        self.time += 1
        return self.time

    def store(self, pieces: Sequence[Piece], medium: list[int] | None = None) -> None:
        medium = self.medium if medium is None else medium
        for piece in pieces:
            for sector in range(piece.start // SECTOR, piece.end // SECTOR):
                medium[sector] = piece.change.number

    def begin(self, kind: str, first: int, count: int) -> None:
        step = Step(len(self.steps) + len(self.flushes), first, count, kind, self.tick())
        if kind == "flush":
            self.flushes.append(step)
            self.open.append((step, self.cache.flush()))
            return
        data = bytes([step.number % 251]) * (count * SECTOR)
        self.cache.begin(
            Change(step.number, first * SECTOR, len(data), data, Kind.WRITE, fua=kind == "fua")
        )
        self.steps.append(step)
        self.open.append((step, 0))

    def end(self, which: int, *, fail: bool) -> None:
        step, mark = self.open.pop(which % len(self.open))
        if fail and step.kind != "flush":
            step.failed = True
            self.cache.fail(step.number)
        elif step.kind == "flush":
            self.store(self.cache.flushed(mark))
        else:
            self.store(self.cache.end(step.number))
        step.end = self.tick()

    def write_back(self, which: int) -> None:
        """Have one reach the medium; the oracle then takes it as if it were flushed, alone."""
        done = [s for s in self.steps if s.end is not None and not s.failed]
        if done:
            step = done[which % len(done)]
            self.store(self.cache.write_back(step.number))
            step.kind = "fua"

    def may_hold(self, sector: int) -> set[int]:
        """Say by the rules what a sector may hold."""
        over = [s for s in self.steps if s.first <= sector < s.first + s.count]
        stable = [s for s in over if s.durable(self.flushes)]
        found = {
            s.number
            for s in over
            if s.end is None or not any(s.end < other.begin for other in stable)
        }
        return found if stable else found | {FIRST}

    def after(self, seed: int, losing: Losing) -> list[int]:
        """Return what a cut leaves."""
        medium = list(self.medium)
        self.store(cut(self.cache, losing, number=len(self.steps), seed=seed).pieces, medium)
        return medium


def actions(seed: int) -> list[tuple[object, ...]]:
    """Make a history: dense ones, as hypothesis's own lists are mostly of one kind of action."""
    random = Random(seed)
    made: list[tuple[object, ...]] = []
    for _ in range(random.randint(2, 16)):
        first = random.randrange(SECTORS)
        place = (first, random.randint(1, SECTORS - first))
        kind = random.choice(["write", "write", "write", "fua", "flush"])
        made.append(
            random.choice(
                [
                    ("begin", kind, place),
                    ("do", kind, place),
                    ("end", random.randrange(4), random.randrange(6)),
                    ("back", random.randrange(8)),
                ]
            )
        )
    return made


histories = st.integers(0, 2**32).map(actions)
losings = st.builds(Losing, st.sampled_from(Lose), st.booleans())


def run(history: Sequence[tuple[object, ...]]) -> History:
    made = History()
    for action in history:
        match action:
            case ("begin", str(kind), (int(first), int(count))):
                made.begin(kind, first, count)
            case ("do", str(kind), (int(first), int(count))):
                made.begin(kind, first, count)
                made.end(-1, fail=False)
            case ("end", int(which), int(luck)) if made.open:
                made.end(which, fail=luck == 0)
            case ("back", int(which)):
                made.write_back(which)
    return made


@settings(max_examples=50, deadline=None)
@given(histories, losings, st.integers(0, 2**62))
def test_every_sector_is_explained(
    history: list[tuple[object, ...]], losing: Losing, first: int
) -> None:
    """Whatever is chosen, each sector holds what the rules let it hold."""
    made = run(history)
    may = [made.may_hold(sector) for sector in range(SECTORS)]
    for seed in range(first, first + 12):
        for sector, number in enumerate(made.after(seed, losing)):
            assert number in may[sector], (sector, number, made.steps, made.flushes)


@settings(max_examples=40, deadline=None)
@given(histories)
def test_every_permitted_content_is_found(history: list[tuple[object, ...]]) -> None:
    """What the rules let a sector hold, some cut leaves there: nothing is left untried."""
    made = run(history)
    left = [made.may_hold(sector) for sector in range(SECTORS)]
    for seed in range(3000):
        for sector, number in enumerate(made.after(seed, Losing(Lose.EACH, tear=False))):
            left[sector].discard(number)
        if not any(left):
            return
    pytest.fail(f"never seen: {left} of {made.steps}, {made.flushes}")


@settings(max_examples=40, deadline=None)
@given(histories, losings, st.integers(0, 2**63 - 1))
def test_one_seed_is_one_cut(history: list[tuple[object, ...]], losing: Losing, seed: int) -> None:
    """The same changes and the same seed give the same pieces and the same verdicts."""
    cuts = [cut(run(history).cache, losing, number=9, seed=seed) for _ in range(2)]
    assert cuts[0] == cuts[1]


@settings(max_examples=40, deadline=None)
@given(histories, losings)
def test_without_anything_unflushed_there_is_one_state(
    history: list[tuple[object, ...]], losing: Losing
) -> None:
    """After all has ended well and a flush, what is left open is only the order of rivals."""
    made = run(history)
    while made.open:
        made.end(0, fail=False)
    made.begin("flush", 0, 1)
    made.end(0, fail=False)
    assert not any(not held.stable and held.promised for held in made.cache.held)
    if not made.cache.held:
        assert made.after(1, losing) == made.after(2, losing) == made.medium


def test_the_older_of_two_may_be_there_without_the_newer() -> None:
    """Both have completed, neither is flushed: what was there before, the first, or the second."""
    made = History()
    for _ in range(2):
        made.begin("write", 0, 1)
        made.end(0, fail=False)
    assert made.may_hold(0) == {FIRST, 0, 1}
    assert made.after(1, Losing(Lose.NONE)) == [1] + [FIRST] * (SECTORS - 1)


def test_a_flush_promises_nothing_of_what_had_not_completed() -> None:
    """A write that ends between the submission of a flush and its end may be lost."""
    made = History()
    made.begin("write", 0, 1)
    made.begin("flush", 0, 1)
    made.end(0, fail=False)
    made.end(0, fail=False)
    assert made.after(1, Losing(Lose.ALL))[0] == FIRST


def test_fua_leaves_older_writes_where_they_are() -> None:
    """It is stable itself, and makes nothing else so; what it lies over is over."""
    made = History()
    for kind, first, count in (("write", 0, 2), ("fua", 1, 1)):
        made.begin(kind, first, count)
        made.end(0, fail=False)
    assert made.medium[1] == 1
    assert made.may_hold(0) == {FIRST, 0}
    assert made.may_hold(1) == {1}


def test_reads_see_what_is_held() -> None:
    """The newest is the last; what something stable lies over is not there any more."""
    made = History()
    for kind, first, count in (("write", 0, 3), ("write", 1, 1), ("fua", 2, 1)):
        made.begin(kind, first, count)
        made.end(0, fail=False)
    seen = [(p.change.number, p.start // SECTOR, p.end // SECTOR) for p in made.cache.over(0, 3072)]
    assert seen == [(0, 0, 2), (1, 1, 2)]


def test_a_write_is_torn_at_sectors() -> None:
    """A torn write is there in part, cut where sectors meet; one sector is never torn."""
    cache = Cache()
    cache.begin(Change(1, 512, 8192, bytes(8192)))
    cache.begin(Change(2, 16384, 4096, bytes(4096)))
    for seed in range(300):
        big, small = cut(cache, Losing(grain=4096), number=1, seed=seed).verdicts
        assert small.fate is not Fate.TORN
        assert all(edge % 4096 == 0 or edge in {512, 8704} for kept in big.kept for edge in kept)
    fates = {cut(cache, Losing(), number=1, seed=seed).verdicts[0].fate for seed in range(50)}
    assert fates == set(Fate)


def test_the_verdict_says_it_in_one_line() -> None:
    """Number, what, where, and what is left of it."""
    cache = Cache()
    cache.begin(Change(7, 4096, 1024, bytes(1024)))
    cache.end(7)
    lines = {str(cut(cache, Losing(), number=1, seed=seed).verdicts[0]) for seed in range(100)}
    assert lines == {
        "request 7: write of 1024 bytes at 4096 kept",
        "request 7: write of 1024 bytes at 4096 lost",
        "request 7: write of 1024 bytes at 4096 torn: kept 4096-4607",
        "request 7: write of 1024 bytes at 4096 torn: kept 4608-5119",
    }


def test_what_is_chosen_never_changes() -> None:
    """A seed that was noted down last year is the same cut still (values of the first version)."""
    cache = Cache()
    for number in range(8):
        cache.begin(Change(number, number * 4096, 4096, bytes(4096)))
        cache.end(number)
    fates = [
        "".join(v.fate[0] for v in cut(cache, Losing(), number=8, seed=seed).verdicts)
        for seed in range(1, 7)
    ]
    assert fates == GOLDEN


GOLDEN = ["lttllltl", "llllllll", "tllllkkt", "kkllllll", "lllllllk", "kkkkkkll"]
