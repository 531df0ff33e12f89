"""
Two engines that live the same life, and a look at everything that must be the same.

Each has a `Rig` of its own: memory, disk, queues.  What a driver or the control plane does is done
to both; then `Twins.compare` looks.  What virtio leaves open is left open: how often a driver is
called, and in which order requests come back that were cancelled together.
"""

import ctypes
import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from engine.driver import GPA, MEMORY, Lane
from engine.harness import FEATURES, Rig, SteppedEngine

from vhostblk.engine.api import Counters, Fault, Job, Miss, OnError, Op, Queue, Stall
from vhostblk.memory.sample import Sample
from vhostblk.memory.space import Segment

_TIMING = ("kicks", "calls", "slots_high")
"""Counters of how often an engine happened to look, and of how much it took in one look."""

KEEP = -1
"""In place of an errno: the disk keeps a view of the request's memory."""

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


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


@dataclass
class Side:
    """
    One queue of one engine.

    Args:
        rig: Its engine.
        lane: The queue and its driver.
    """

    rig: Rig
    lane: Lane
    open: list[Job] = field(default_factory=list)
    missed: list[Miss] = field(default_factory=list)
    stalled: list[Stall] = field(default_factory=list)
    told_of_samples: bool = False
    asks: bool = False  # so that whether kicks are wanted meanwhile is the engine's affair
    told: int = 0  # chains that had come back at the last look
    pushed: int = 0  # chains that came back since the look before
    quiet: bool = False  # the driver did not want to be called at the last look
    lost: bool = False  # the driver broke rules: what it takes for used may not be
    greeted: bool = False  # a new call fd is written when the ring runs

    def look(self, *, sort: bool, ours: bool) -> Seen:
        """Return what is new; *sort*: in any order; *ours*: the control plane has the ring."""
        lane = self.lane
        fault = lane.queue.fault()
        used = self._used()
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
        )
        self.told_of_samples = False
        self.rig.jobs.clear()
        return seen

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
        lane.broken.clear()
        self.lost = False
        self.missed.clear()
        lane.queue.set_base(on_wire)
        lane.queue.set_ring(size=size, **lane.place())
        self.told = 0

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
            self.lane.mailbox.complete(job.tag, error)

    def check_calls(self, *, ours: bool) -> None:
        """Check that a driver that wants to be called was, and one that does not was not."""
        rung = self.lane.rings(self.lane.call)
        before, self.quiet = self.quiet, self.lane.ring.is_quiet()
        if self.pushed and not (before or self.quiet or self.lost):
            assert rung
        elif before and self.quiet and not self.greeted:
            assert not rung
        self.greeted = self.greeted and ours


def _same(first: Seen, second: Seen) -> None:
    names = Seen.__dataclass_fields__
    both = {name: (getattr(first, name), getattr(second, name)) for name in names}
    different = {name: pair for name, pair in both.items() if pair[0] != pair[1]}
    assert not different, different


def _comparable(counters: Counters) -> dict[str, int]:
    names = Counters.__dataclass_fields__
    return {name: getattr(counters, name) for name in names if name not in _TIMING}


class Twins:
    """
    Two engines, each with as many queues as there are *sizes*.

    Args:
        engines: What makes them.
        sizes: Of the rings.
        packed: The rings are.
        features: Acked.
    """

    def __init__(
        self,
        engines: Sequence[Callable[[], SteppedEngine]],
        sizes: Sequence[int],
        *,
        packed: bool = False,
        features: int = FEATURES,
    ) -> None:
        self.rigs = [Rig(make, packed=packed) for make in engines]
        pairs = [[rig.lane(size=size, features=features) for rig in self.rigs] for size in sizes]
        self.pairs = [
            [Side(*both) for both in zip(self.rigs, lanes, strict=True)] for lanes in pairs
        ]
        self.ours = [False] * len(sizes)
        self.ended = 0

    def driver(self, n: int, act: Callable[[Lane], object]) -> None:
        """Let the driver of queue *n* do something."""
        results = [act(side.lane) for side in self.pairs[n]]
        assert results[0] == results[1]

    def break_rules(self, n: int, act: Callable[[Lane], object]) -> None:
        """Let the driver of queue *n* do what no honest one does."""
        for side in self.pairs[n]:
            side.lost = True
        self.driver(n, act)

    def control(self, n: int, change: Callable[[Side], object]) -> None:
        """Change something of queue *n*, which the control plane owns."""
        assert self.ours[n]
        for side in self.pairs[n]:
            side.rig.call(partial(change, side))

    def resume(self, n: int) -> None:
        """Have queue *n* try again what it holds."""
        for side in self.pairs[n]:
            side.rig.call(side.lane.queue.resume)

    def run(self, n: int) -> None:
        """Hand queue *n* over."""
        self.control(n, lambda side: side.lane.queue.run())
        self.ours[n] = False

    def ask(self, n: int, question: Callable[[Queue], Awaitable[object]]) -> None:
        """Get queue *n* back."""
        answers = [side.rig.wait(question(side.lane.queue)) for side in self.pairs[n]]
        assert answers[0] == answers[1]
        self.ours[n] = True

    def restart(self, n: int, size: int, base: int, used: int) -> None:
        """Give queue *n*, which is drained, an empty ring that stands somewhere."""
        self.control(n, lambda side: side.restart(size, base, used))

    def end(self, n: int, index: int, error: int) -> None:
        """End one of the open jobs of queue *n*; what it reads was never read before."""
        self.ended += 1
        for side in self.pairs[n]:
            side.end(index, error, fill=f"{self.ended} ".encode())

    def broken(self, n: int) -> bool:
        """Say whether queue *n* is broken."""
        return self.pairs[n][0].lane.queue.fault() is not None

    def waits(self, n: int) -> bool:
        """Say whether queue *n* may wait for an answer."""
        return bool(self.pairs[n][0].missed)

    def in_flight(self, n: int) -> int:
        """Return how many requests of queue *n* have not ended."""
        return self.pairs[n][0].lane.queue.counters().in_flight

    def open(self, n: int) -> int:
        """Return how many jobs of queue *n* were taken and not ended."""
        return len(self.pairs[n][0].open)

    def compare(self, *, sort: bool = False) -> None:
        """
        Let both work until they have nothing to do; then everything is the same.

        Args:
            sort: Chains may have come back, and jobs been cancelled, in any order.
        """
        for rig in self.rigs:
            rig.step()
        for pair, ours in zip(self.pairs, self.ours, strict=True):
            first, second = (side.look(sort=sort, ours=ours) for side in pair)
            _same(first, second)
            for side in pair:
                side.check_calls(ours=ours)
        self._compare_memory()

    def _compare_memory(self) -> None:
        """All but where used elements are, which were compared."""
        first, second = (rig.memory for rig in self.rigs)
        at = GPA
        for pair in self.pairs:
            start, length = pair[0].lane.ring.shared()
            _compare(first.at(at), second.at(at), start - at)
            at = start + length
        _compare(first.at(at), second.at(at), GPA + MEMORY - at)

    def close(self) -> None:
        """End what is under way, take everything apart."""
        for n, pair in enumerate(self.pairs):
            while self.open(n):
                self.end(n, 0, errno.EIO)
            for side in pair:
                side.rig.step()
        for rig in self.rigs:
            rig.close()


def _compare(first: int, second: int, length: int) -> None:
    if _memcmp(first, second, length) != 0:
        a, b = (ctypes.string_at(at, length) for at in (first, second))
        at = next(i for i in range(length) if a[i] != b[i])
        raise AssertionError(f"memory differs: {a[at : at + 16]!r} {b[at : at + 16]!r}")
