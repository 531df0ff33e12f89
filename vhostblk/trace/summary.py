"""What a trace amounts to: how much of what, and how long it took."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from vhostblk.trace.format import Op
from vhostblk.trace.reader import Request

_SHARES = (50, 99)


@dataclass(slots=True)
class Kind:
    """
    Requests of one kind.

    Args:
        requests: How many.
        bytes: Together.
        errors: How many failed.
        unfinished: How many are not over.
        latencies: Nanoseconds each took that is over.
    """

    requests: int = 0
    bytes: int = 0
    errors: int = 0
    unfinished: int = 0
    latencies: list[int] = field(default_factory=list)

    def add(self, request: Request) -> None:
        """Count one more."""
        self.requests += 1
        self.bytes += request.submitted.length
        latency = request.latency
        if request.completed is None or latency is None:
            self.unfinished += 1
            return
        self.errors += bool(request.completed.error)
        self.latencies.append(latency)

    def latency(self, share: int) -> int | None:
        """Return the nanoseconds that *share* percent took at most; 100: the longest."""
        if not self.latencies:
            return None
        found = sorted(self.latencies)
        return found[min(len(found) * share // 100, len(found) - 1)]


@dataclass(slots=True)
class Summary:
    """
    What a segment amounts to.

    Args:
        kinds: By what was asked.
        queues: On how many queues.
        end: Nanoseconds from its begin to the last thing that happened.
    """

    kinds: dict[Op, Kind]
    queues: int
    end: int

    def rows(self) -> list[dict[str, object]]:
        """Return a row for each kind, for people and programs."""
        return [
            {
                "op": op.name.lower().replace("_", "-"),
                "requests": kind.requests,
                "bytes": kind.bytes,
                "errors": kind.errors,
                "unfinished": kind.unfinished,
                **{f"p{share}_ns": kind.latency(share) for share in _SHARES},
                "max_ns": kind.latency(100),
            }
            for op, kind in sorted(self.kinds.items())
        ]


def summary(requests: Iterable[Request]) -> Summary:
    """Add up requests of one segment."""
    kinds: defaultdict[Op, Kind] = defaultdict(Kind)
    queues: set[int] = set()
    end = 0
    for request in requests:
        kinds[request.submitted.op].add(request)
        queues.add(request.submitted.queue)
        last = request.completed or request.submitted
        end = max(end, last.time)
    return Summary(dict(kinds), len(queues), end)
