"""How long requests took, and which are under way for long."""

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import count

from vhostblk.engine.latency import BUCKETS, Latency, Slow, bucket_of
from vhostblk.engine.op import Op
from vhostblk.engine.reference.chain import Request


class Times:
    """
    The times of one queue; the worker's, but for `latency`, `slow` and *on_busy*.

    Args:
        tell: Call something on the control thread.
        clock: Returns nanoseconds that only grow.
    """

    def __init__(
        self,
        tell: Callable[[Callable[[], None]], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._tags = count()
        self._latency: dict[Op, Latency] = {op: Latency() for op in Op if op is not Op.CANCEL}
        self.on_busy: Callable[[], None] | None = None
        """Called on the control thread when a request is taken, and then forgotten."""

    def begin(self, request: Request) -> None:
        """Note that a request is taken."""
        request.tag, request.since_ns = next(self._tags), self._clock()
        if self.on_busy is not None:
            on_busy, self.on_busy = self.on_busy, None
            self._tell(on_busy)

    def end(self, requests: Iterable[Request]) -> None:
        """Note that requests are given back; the disk counts, not what was over at once."""
        now = self._clock()
        for request in requests:
            if request.op is not None:
                ns = now - request.since_ns
                self._latency[request.op] += _one(ns)

    def latency(self) -> Mapping[Op, Latency]:
        """Return how long requests took, by kind; at any time."""
        return dict(self._latency)

    def slow(self, requests: Iterable[Request], seconds: float) -> list[Slow]:
        """Return those of *requests* that are under way for so long; at any time."""
        now = self._clock()
        found = []
        for request in requests:
            age = (now - request.since_ns) / 1e9
            todo = next(iter(request.todo), None)
            if request.op is not None and todo is not None and age >= seconds:
                found.append(
                    Slow(
                        op=request.op,
                        offset=todo.offset,
                        length=todo.length,
                        age=age,
                        tag=request.tag,
                        since_ns=request.since_ns,
                    )
                )
        return found


def _one(ns: int) -> Latency:
    bucket = bucket_of(ns)
    buckets = (0,) * bucket + (1,) + (0,) * (BUCKETS - bucket - 1)
    return Latency(sum_ns=ns, max_ns=ns, buckets=buckets)
