"""
Two engines that live the same life, and a look at everything that must be the same.

Each has a `Rig` of its own: memory, disk, queues.  What a driver or the control plane does is done
to both; then `Twins.compare` looks.  What virtio leaves open is left open: how often a driver is
called, and in which order requests come back that were cancelled together.
"""

import ctypes
import errno
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from engine.driver import GPA, MEMORY, Lane
from engine.harness import FEATURES, Rig, SteppedEngine
from engine.region import Region
from engine.side import Side, same

from vhostblk.engine.api import Queue
from vhostblk.memory.space import Segment

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class Twins:
    """
    Two engines, each with as many queues as there are *sizes*.

    Args:
        engines: What makes them.
        sizes: Of the rings.
        packed: The rings are.
        features: Acked.
        tracked: What is taken is noted in inflight regions, so that they may `die`.
    """

    def __init__(
        self,
        engines: Sequence[Callable[[], SteppedEngine]],
        sizes: Sequence[int],
        *,
        packed: bool = False,
        features: int = FEATURES,
        tracked: bool = False,
    ) -> None:
        self._makers = list(engines)
        self.rigs = [Rig(make, packed=packed) for make in engines]
        self.pairs: list[list[Side]] = []
        for size in sizes:
            pair = []
            for rig in self.rigs:
                region = Region(size, packed=packed) if tracked else None
                lane = rig.lane(size=size, features=features, region=region)
                pair.append(Side(rig, lane, region))
            self.pairs.append(pair)
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

    def die(self, space: Callable[[Lane], list[Segment]]) -> None:
        """Let both die, and each engine go on behind the other, with that memory."""
        self._makers.reverse()
        before, pairs = self.rigs, self.pairs
        self.rigs = [
            Rig(make, packed=rig.packed) for make, rig in zip(self._makers, before, strict=True)
        ]
        for rig, old in zip(self.rigs, before, strict=True):
            rig.memory.bytes[:] = old.memory.bytes[:]
        self.pairs = [
            [side.successor(rig, space) for side, rig in zip(pair, self.rigs, strict=True)]
            for pair in pairs
        ]
        self.ours = [False] * len(pairs)
        _bury(before, pairs)
        self.compare()

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

    def lost(self, n: int) -> bool:
        """Say whether the driver of queue *n* takes for used what may not be."""
        return self.pairs[n][0].lost

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
            same(first, second)
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
        _bury(self.rigs, self.pairs)


def _bury(rigs: list[Rig], pairs: list[list[Side]]) -> None:
    for side in (side for pair in pairs for side in pair):
        while side.open:
            side.end(0, errno.EIO, fill=b"x")
        side.rig.step()
    for rig in rigs:
        rig.close()


def _compare(first: int, second: int, length: int) -> None:
    if _memcmp(first, second, length) != 0:
        a, b = (ctypes.string_at(at, length) for at in (first, second))
        at = next(i for i in range(length) if a[i] != b[i])
        raise AssertionError(f"memory differs: {a[at : at + 16]!r} {b[at : at + 16]!r}")
