"""The machine under all of it: what it gives by itself, and who else is at work on it."""

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.load import FLAGS, HERE
from bench.sample import Sample
from bench.servers import Running

_TICK = os.sysconf("SC_CLK_TCK")
_STAT = Path("/proc/stat")


def build(directory: Path) -> Path:
    """Compile machine.c into *directory*."""
    program = directory / "machine"
    command = [*FLAGS, str(HERE / "machine.c"), "-lpthread", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def measure(program: Path, *words: object) -> float:
    """Run machine.c once; return its nanoseconds."""
    command = [str(program), *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["ns"])


def sample(program: Path, *words: object) -> Sample:
    """Run machine.c once, as somebody who takes turns: one round trip or copy is one request."""
    ns = measure(program, *words)
    return Sample(iops=1e9 / ns, latency_us={"50": ns / 1000, "99": ns / 1000})


@dataclass(frozen=True, slots=True)
class Busy:
    """
    CPU seconds that were used since the machine started.

    Args:
        used: By processes and the kernel's threads, without interrupts.
        stolen: By the host.
    """

    used: float
    stolen: float


def parse_stat(text: str) -> Busy:
    """Read the first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal."""
    fields = [int(word) / _TICK for word in text.split("\n", 1)[0].split()[1:9]]
    return Busy(used=sum(fields[:3]), stolen=fields[7])


def watched(run: Callable[[], Sample], servers: Sequence[Running]) -> Sample:
    """
    Take a sample and say who else was at work.

    Args:
        run: What takes it; its processes are our children and have ended.
        servers: Whose CPU time is not others'.
    """

    def own() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = sum(server.cpu_seconds() for server in servers)
        return spent.ru_utime + spent.ru_stime + ours + time.process_time()

    before, mine, begin = parse_stat(_STAT.read_text()), own(), time.monotonic()
    taken = run()
    after, ours, seconds = parse_stat(_STAT.read_text()), own() - mine, time.monotonic() - begin
    # Ticks are coarse and taken at other moments than the clocks: a little below zero is none.
    other = max(after.used - before.used - ours, 0.0) / seconds
    return taken.beside(other=other, stolen=(after.stolen - before.stolen) / seconds)


def describe(program: Path, cores: tuple[int, int]) -> dict[str, object]:
    """Return how the machine is at this moment: load, and how far its two cores are apart."""
    return {
        "load": round(os.getloadavg()[0], 2),
        "ping_ns": measure(program, "ping", *cores, 0.2),
        "wake_us": measure(program, "wake", *cores, 0.2) / 1000,
    }
