"""Which states of a recording are looked at: moments, and seeds for each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vhostblk.disk.loss import Cut, Dice, Losing, cut
from vhostblk.errors import VhostBlkError
from vhostblk.sweep.history import END, Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    Which states.

    Args:
        at: These request numbers only, the end being 0; empty: all that the rest says.
        first: The first request.
        last: The last one, the end included; None: the end.
        every: One in so many.
        flushes: At flushes, and at the end, only.
        random: So many moments drawn from all of those, one seed each; 0: all.
        seed: The first seed.
        seeds: So many for each moment.
        losing: How is lost.
    """

    at: frozenset[int] = frozenset()
    first: int = 1
    last: int | None = None
    every: int = 1
    flushes: bool = False
    random: int = 0
    seed: int = 1
    seeds: int = 4
    losing: Losing = field(default_factory=Losing)

    def takes(self, moment: Moment) -> bool:
        """Tell whether the power goes at a moment."""
        end = moment.op == END
        if self.at:
            return moment.number in self.at or (end and 0 in self.at)
        if moment.number < self.first or (self.last is not None and moment.number > self.last):
            return False
        if self.flushes and moment.op != "flush":
            return end
        return end or (moment.number - self.first) % self.every == 0


@dataclass(frozen=True, slots=True)
class State:
    """
    What the disk may hold.

    Args:
        moment: When the power goes.
        cut: What that leaves.
        index: Its place among all states.
    """

    moment: Moment
    cut: Cut
    index: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """
    What a recording has.

    Args:
        requests: How many.
        moments: How many of them, and of the end, a plan takes.
    """

    requests: int
    moments: int


def count(moments: Iterable[Moment], plan: Plan) -> Numbers:
    """
    Go through all of a recording once, and see that it has what a plan names.

    Raises:
        VhostBlkError: It lacks payloads, or a request that is named.
    """
    requests, taken = 0, 0
    for moment in moments:
        requests = moment.number - 1
        taken += plan.takes(moment)
    for number in plan.at:
        if number > requests + 1:
            raise VhostBlkError(
                f"there is no request {number}: the recording has {requests}, and the end"
            )
    if not taken:
        raise VhostBlkError(f"no request is left of the {requests} of the recording")
    return Numbers(requests, taken)


def states(moments: Iterable[Moment], plan: Plan, numbers: Numbers) -> Iterator[Moment | State]:
    """
    Go through the states; each once, though several seeds, or moments, have the same.

    Yields:
        Each moment, whose `Moment.stable` is to be stored on the medium, and then its states.
    """
    drawn = _drawn(plan, numbers)
    seen: set[tuple[tuple[int, int, int], ...]] = set()
    index = taken = 0
    for moment in moments:
        if moment.stable:
            seen.clear()
        yield moment
        if not plan.takes(moment):
            continue
        seeds = range(plan.seed, plan.seed + plan.seeds) if drawn is None else drawn.get(taken, ())
        taken += 1
        for seed in seeds:
            left = cut(moment.cache, plan.losing, number=moment.number, seed=seed)
            key = tuple((p.change.number, p.start, p.end) for p in left.pieces)
            if key not in seen:
                seen.add(key)
                yield State(moment, left, index)
                index += 1


def _drawn(plan: Plan, numbers: Numbers) -> dict[int, list[int]] | None:
    """Draw moments; None: all of them are taken."""
    if not plan.random:
        return None
    dice, drawn = Dice(plan.seed), dict[int, list[int]]()
    for seed in range(plan.seed, plan.seed + plan.random):
        drawn.setdefault(dice.below(numbers.moments), []).append(seed)
    return drawn
