"""What is asked of a load, and what one run of it gave."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

OTHER_CPUS = 0.10
"""Of one CPU: a run in which other processes used more is disturbed."""
STOLEN_CPUS = 0.05
"""Of one CPU: the same for what the host took away."""


class Unable(Exception):  # noqa: N818 - it is a state of the machine, not an error of ours
    """A line cannot be measured; its text says why.  The others can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """
    What a client does.

    Args:
        op: ``read`` or ``write``.
        bytes: Of a request.
        depth: Requests under way on each queue.
        queues: Queues of each device that are used.
        seconds: How long, after a tenth of it to warm up.
        wait: ``block`` (sleeps on the completion eventfds) or ``poll``.
        order: ``rand`` or ``seq``.
    """

    op: str = "read"
    bytes: int = 4096
    depth: int = 1
    queues: int = 1
    seconds: float = 1.0
    wait: str = "block"
    order: str = "rand"

    def __str__(self) -> str:
        """Name it in a line of progress."""
        queues = f" {self.queues} queues" if self.queues > 1 else ""
        size = f"{self.bytes >> 10}K"
        return f"{self.order}{self.op} {size} QD{self.depth}{queues} {self.wait}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """
    What one run gave.

    Args:
        iops: Requests per second, of all queues and devices.
        latency_us: Microseconds by percentile, "0" to "100".
        server_cpu_us: CPU microseconds of the server per request; 0: there is none.
        client_cpu_us: The same of the client.
        least: Requests that the queue was given which got the fewest.
        most: The same of the one that got the most.
        other: CPUs that other processes used meanwhile.
        stolen: CPUs that the host took away meanwhile.
    """

    iops: float
    latency_us: Mapping[str, float]
    server_cpu_us: float = 0.0
    client_cpu_us: float = 0.0
    least: float = 0.0
    most: float = 0.0
    other: float = 0.0
    stolen: float = 0.0

    @property
    def p50_us(self) -> float:
        """Median latency."""
        return self.latency_us["50"]

    @property
    def p99_us(self) -> float:
        """Latency that one request in a hundred exceeds."""
        return self.latency_us["99"]

    @property
    def us(self) -> float:
        """Microseconds from one request to the next."""
        return 1e6 / self.iops

    @property
    def disturbed(self) -> bool:
        """Whether others were at work, too."""
        return self.other > OTHER_CPUS or self.stolen > STOLEN_CPUS

    def beside(self, *, other: float, stolen: float) -> "Sample":
        """Return it with what the rest of the machine did meanwhile, in CPUs."""
        return replace(self, other=round(other, 3), stolen=round(stolen, 3))

    def document(self) -> dict[str, object]:
        """Return it for JSON."""
        return asdict(self)


Samples = Mapping[str, list[Sample]]
"""By who took turns: a sample for each turn, in order."""
