"""What came of a load: rates, latencies, CPU time, errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vhostblk.guest.histogram import Histogram
from vhostblk.guest.load import Plan

READ, WRITE = 0, 1
FAILURES = ("ioerr", "unsupported", "other", "unwritten")
"""Why a request failed: its status, or that the device has not written any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """
    What a generator has counted; see ``native/guest/driver.h``.

    Args:
        latency: Of reads, of writes.
        kicks: How often the device was kicked.
        sleeps: How often the driver slept.
        begin_ns: When counting began.
        end_ns: When it ended; 0: not yet.
        cpu_ns: The thread used in that time.
        failed: How often for each of `FAILURES`, warm-up included, as are the following.
        missed_calls: Something was used and no call came.
        ended: Requests, in whatever way.
        checked: Reads that were compared.
    """

    latency: tuple[Histogram, Histogram]
    kicks: int
    sleeps: int
    begin_ns: int
    end_ns: int
    cpu_ns: int
    failed: tuple[int, ...]
    missed_calls: int
    ended: int
    checked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """
    Where a load has got to.

    Args:
        phase: ``fill``, ``warm-up``, ``load`` or ``check``.
        seconds: Since the phase began, or the warm-up with which it did.
        ended: Requests, in this phase.
        iops: Since the last look.
        bytes_per_s: The same in bytes.
        failed: Requests that failed.
    """

    phase: str
    seconds: float
    ended: int
    iops: float
    bytes_per_s: float
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """
    All reads, or all writes, that ended well.

    Args:
        requests: How many.
        iops: In a second.
        bytes_per_s: The same in bytes.
        latency: From when it was shown to the device until it was taken back.
    """

    requests: int
    iops: float
    bytes_per_s: float
    latency: Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """
    A load and what came of it.

    Args:
        plan: What was done.
        seconds: How long was measured.
        interrupted: It was stopped before its time.
        read: Reads.
        write: Writes.
        client_cpu_us: CPU microseconds of the load itself for each request.
        server_cpu_us: Those of the server; ``None``: they cannot be told.
        server: Its process; ``None``: it is in another namespace, or this very process.
        failed: Requests that ended otherwise than OK, by `FAILURES`, in all phases.
        kicks: For each request.
        sleeps: For each request.
        missed_calls: How often something was used and no call came within 250 ms.
        checked: Reads that were compared, of whole blocks, in all phases.
    """

    plan: Plan
    seconds: float
    interrupted: bool
    read: Kind
    write: Kind
    client_cpu_us: float
    server_cpu_us: float | None
    server: int | None
    failed: Mapping[str, int]
    kicks: float
    sleeps: float
    missed_calls: int
    checked: int

    @property
    def requests(self) -> int:
        """Return how many ended well."""
        return self.read.requests + self.write.requests

    @property
    def iops(self) -> float:
        """Return reads and writes in a second."""
        return self.read.iops + self.write.iops


def make_report(  # noqa: PLR0913 - what else is known
    plan: Plan,
    counts: Sequence[Counts],
    *,
    interrupted: bool,
    server: int | None,
    server_cpu_us: float | None,
    failed: Mapping[str, int],
    checked: int,
) -> Report:
    """Add up what the queues counted; *failed* and *checked*: in all phases."""
    read, write = (_kind(plan, counts, which) for which in (READ, WRITE))
    requests = max(read.requests + write.requests, 1)
    return Report(
        plan=plan,
        seconds=max((one.end_ns - one.begin_ns) / 1e9 for one in counts),
        interrupted=interrupted,
        read=read,
        write=write,
        client_cpu_us=sum(one.cpu_ns for one in counts) / requests / 1e3,
        server_cpu_us=server_cpu_us,
        server=server,
        failed={name: failed.get(name, 0) for name in FAILURES},
        kicks=sum(one.kicks for one in counts) / requests,
        sleeps=sum(one.sleeps for one in counts) / requests,
        missed_calls=sum(one.missed_calls for one in counts),
        checked=checked,
    )


def failures(counts: Sequence[Counts]) -> dict[str, int]:
    """Return how many requests failed, by `FAILURES`."""
    return {name: sum(one.failed[i] for one in counts) for i, name in enumerate(FAILURES)}


def _kind(plan: Plan, counts: Sequence[Counts], which: int) -> Kind:
    iops = sum(one.latency[which].count * 1e9 / max(one.end_ns - one.begin_ns, 1) for one in counts)
    latency = Histogram.merged(one.latency[which] for one in counts)
    return Kind(
        requests=latency.count,
        iops=iops,
        bytes_per_s=iops * plan.load.bytes,
        latency=latency,
    )
