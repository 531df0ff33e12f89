"""The machine under all of it: what it gives by itself, and who else is at work on it."""

import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.load import FLAGS, HERE
from bench.sample import Sample, Unable
from bench.servers import Running

_TICK = os.sysconf("SC_CLK_TCK")
_STAT = Path("/proc/stat")
_FLAGS, _PF_KTHREAD = 6, 0x00200000
"""Field of /proc/PID/stat, counted behind the name; its bit in <linux/sched.h>."""
_NEGLIGIBLE = 0.001
"""CPU seconds of a process that is not looked at further."""
_TICKS_OFF = 0.2
"""CPU seconds by which ticks may be off in a run of a second or two: they are samples."""


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


def clock(pid: int) -> float:
    """
    Return the CPU seconds of a process, of those of its threads that have ended, too.

    Raises:
        OSError: There is none.
    """
    # As clock_getcpuclockid(3) makes it: CPUCLOCK_SCHED is 2.
    return time.clock_gettime(~pid << 3 | 2)


def clocks() -> dict[int, float]:
    """Return the CPU seconds of every process."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                found[int(path.name)] = clock(int(path.name))
    return found


def is_kernel(pid: int) -> bool:
    """Tell whether a process is one of the kernel's threads."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return bool(int(words[_FLAGS]) & _PF_KTHREAD)


def used_by_others(
    used: float, ours: float, spent: Mapping[int, float], mine: Container[int]
) -> float:
    """
    Say what other processes used, in CPU seconds.

    Args:
        used: By everybody, by the kernel's ticks, which are coarse but see who came and went.
        ours: By children of ours that have ended.
        spent: By every process that is there in the end, exactly.
        mine: Which of them are no others.
    """
    busy = {pid: seconds for pid, seconds in spent.items() if seconds > _NEGLIGIBLE}
    # The kernel writes back what we have written: its threads are nobody's.
    kernel = sum(seconds for pid, seconds in busy.items() if pid not in mine and is_kernel(pid))
    own = sum(seconds for pid, seconds in busy.items() if pid in mine)
    others = sum(busy.values()) - kernel - own
    return max(others, used - ours - own - kernel - _TICKS_OFF)


def watched(run: Callable[[], Sample], servers: Sequence[Running]) -> Sample:
    """
    Take a sample and say who else was at work.

    Args:
        run: What takes it; its processes are our children and have ended.
        servers: Whose CPU time is not others'.

    Raises:
        Unable: No request came back in the measured time.
    """

    def children() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before, ended, stat, begin = clocks(), children(), _STAT.read_text(), time.monotonic()
    taken = run()
    after, seconds = clocks(), time.monotonic() - begin
    if not taken.iops:
        raise Unable("no request came back in the measured time: give it more --seconds")
    was, now = parse_stat(stat), parse_stat(_STAT.read_text())
    spent = {pid: used - before.get(pid, 0.0) for pid, used in after.items()}
    mine = {os.getpid(), *(server.pid for server in servers)}
    other = used_by_others(now.used - was.used, children() - ended, spent, mine)
    return taken.beside(other=other / seconds, stolen=(now.stolen - was.stolen) / seconds)


def describe(program: Path, cores: tuple[int, int]) -> dict[str, object]:
    """Return how the machine is at this moment: load, and how far its two cores are apart."""
    return {
        "load": round(os.getloadavg()[0], 2),
        "ping_ns": measure(program, "ping", *cores, 0.2),
        "wake_us": measure(program, "wake", *cores, 0.2) / 1000,
    }
