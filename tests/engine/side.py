"""One queue of one of two engines that are compared, and all there is to see of it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.driver import Lane
from engine.harness import Rig
from engine.region import Region

from vhostblk.engine.api import Counters, Fault, Job, Miss, OnError, Op, Stall
from vhostblk.memory.sample import Sample
from vhostblk.memory.space import Segment

_TIMING = ("kicks", "calls", "late_calls", "slots_high", "next_avail", "next_used")
"""
Counters of how often an engine happened to look, and of how much it took in one look; the places
are those of the last look, and compared by the base.
"""

KEEP = -1
"""In place of an errno: the disk keeps a view of the request's memory."""


@dataclass(frozen=True)
class Seen:
    """What became of one queue since the last look."""

    used: list[tuple[int, int]]
    base: int | None
    missed: list[Miss]
    stalled: list[Stall]
    stall: Stall | None
    broken: list[Fault | None]
    fault: Fault | None
    errs: int
    wants_kicks: bool | None
    counters: dict[str, int]
    jobs: list[tuple[object, ...]]
    told: bool
    samples: list[Sample]
    region: tuple[object, ...] | None


@dataclass
class Side:
    """
    One queue of one engine.

    Args:
        rig: Its engine.
        lane: The queue and its driver.
        region: Where what is taken is noted.
    """

    rig: Rig
    lane: Lane
    region: Region | None = None
    open: list[Job] = field(default_factory=list)
    missed: list[Miss] = field(default_factory=list)
    stalled: list[Stall] = field(default_factory=list)
    told_of_samples: bool = False
    asks: bool = False  # so that whether kicks are wanted meanwhile is the engine's affair
    told: int = 0  # chains that had come back at the last look
    pushed: int = 0  # chains that came back since the look before
    quiet: bool = False  # the driver did not want to be called at the last look
    lost: bool = False  # the driver broke rules: what it takes for used may not be
    mixed: bool = False  # chains came back in any order, which their region's lists show
    greeted: bool = False  # a new call fd is written when the ring runs

    def look(self, *, sort: bool, ours: bool) -> Seen:
        """
        Return what is new.

        Args:
            sort: In any order; a driver that is lost then finds who knows what.
            ours: The control plane has the ring.
        """
        lane = self.lane
        fault = lane.queue.fault()
        used = self._used()
        self.mixed |= sort and (self.lost or len(used) > 1)
        if sort and self.lost:
            used = []
        jobs = [self._describe(job) for job in self.rig.take(lane)]
        seen = Seen(
            used=sorted(used) if sort else used,
            base=lane.queue.base() if ours else None,
            missed=list(self.missed),
            stalled=list(self.stalled),
            stall=lane.queue.stall(),
            broken=list(lane.broken),
            fault=fault,
            errs=lane.rings(lane.err),
            wants_kicks=None if fault or self.asks else lane.ring.wants_kicks(),
            counters=_comparable(lane.queue.counters()),
            jobs=sorted(jobs, key=repr) if sort else jobs,
            told=self.told_of_samples,
            samples=lane.queue.samples(),
            region=self._region_says(),
        )
        self.told_of_samples = False
        self.rig.jobs.clear()
        return seen

    def _region_says(self) -> tuple[object, ...] | None:
        if self.region is None:
            return None
        return self.region.under_way() if self.mixed else self.region.meaning()

    def _used(self) -> list[tuple[int, int]]:
        used = self.lane.used(self.told)
        self.pushed = len(used)
        self.told += len(used)
        return used

    def _describe(self, job: Job) -> tuple[object, ...]:
        if job.op is Op.CANCEL:
            return ("cancel", [open_.tag for open_ in self.open].index(job.tag))
        self.open.append(job)
        lengths = [len(view) for view in job.views]
        data = [bytes(view) for view in job.views if view.readonly]
        return (job.op, job.offset, job.length, job.fua, job.unmap, lengths, data)

    def restart(self, size: int, base: int, used: int) -> None:
        """Have an empty ring that stands somewhere."""
        lane = self.lane
        on_wire = lane.ring.restart(size, base, used)
        if self.region is not None:
            self.region.bytes[:] = bytes(self.region.length)
        lane.broken.clear()
        self.lost = self.mixed = False
        self.missed.clear()
        lane.queue.set_base(on_wire)
        lane.queue.set_ring(size=size, **lane.place())
        self.told = 0

    def successor(self, rig: Rig, space: Callable[[Lane], list[Segment]]) -> "Side":
        """Return who finds what there is when the engine is dead, its memory copied to *rig*."""
        region = None if self.region is None else self.region.copy()
        ring = self.lane.ring.adopt(rig.memory)
        lane = rig.lane(ring=ring, features=self.lane.acked, region=region, run=False)
        rig.call(lambda: lane.queue.set_space(space(lane)))
        rig.call(lane.queue.run)
        made = Side(rig, lane, region, told=self.told, lost=self.lost, mixed=self.mixed)
        made.greeted = True
        return made

    def set_space(self, segments: Sequence[Segment]) -> None:
        """Give the queue another table of memory; what it asked for is answered."""
        self.lane.queue.set_space(segments)
        self.missed.clear()

    def set_ask(self, *, asks: bool) -> None:
        """Let the queue ask for what no segment gives, or not."""
        self.lane.queue.set_ask(self.missed.append if asks else None)
        self.asks |= asks
        self.missed.clear()

    def set_sampling(self, first: int, every: int) -> None:
        """Begin a new count of chains."""

        def tell() -> None:
            self.told_of_samples = True

        self.lane.queue.set_sampling(first=first, every=every, on_samples=tell)

    def set_on_error(self, policy: OnError) -> None:
        """Say what becomes of requests that fail."""
        self.lane.queue.set_on_error(policy, on_stalled=self.stalled.append)

    def condemn(self) -> None:
        """Break the queue."""
        self.lane.queue.condemn("for a reason")

    def deny(self) -> None:
        """Answer no to what was asked for."""
        if self.missed:
            miss = self.missed.pop()
            self.lane.queue.deny(miss.iova, miss.length)

    def set_call(self) -> None:
        """Give the queue its call eventfd anew."""
        self.lane.queue.set_call(os.dup(self.lane.call))
        self.greeted = True

    def end(self, index: int, error: int, *, fill: bytes) -> None:
        """Do the open job at *index*: it reads *fill* again and again, or fails with *error*."""
        job = self.open.pop(index)
        if job.op is Op.READ and not error:
            data = fill * (job.length // len(fill) + 1)
            for view in job.views:
                view[:], data = data[: len(view)], data[len(view) :]
        assert job.release()
        if error == KEEP:
            self.lane.mailbox.break_queue(job.tag)
        else:
            self.lane.mailbox.complete([(job.tag, error)])

    def check_calls(self, *, ours: bool) -> None:
        """Check that a driver that wants to be called was, and one that does not was not."""
        rung = self.lane.rings(self.lane.call)
        before, self.quiet = self.quiet, self.lane.ring.is_quiet()
        if self.pushed and not (before or self.quiet or self.lost):
            assert rung
        elif before and self.quiet and not self.greeted:
            assert not rung
        self.greeted = self.greeted and ours


def same(first: Seen, second: Seen) -> None:
    names = Seen.__dataclass_fields__
    both = {name: (getattr(first, name), getattr(second, name)) for name in names}
    different = {name: pair for name, pair in both.items() if pair[0] != pair[1]}
    assert not different, different


def _comparable(counters: Counters) -> dict[str, int]:
    names = Counters.__dataclass_fields__
    return {name: getattr(counters, name) for name in names if name not in _TIMING}
