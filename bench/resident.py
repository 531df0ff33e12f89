"""
What devices cost that do nothing: wake-ups, CPU time, memory, threads.

``python -m bench.resident --devices 1,8,64,256`` prints it for servers with so many.
"""

import argparse
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import load as client_load
from bench.machine import clock
from bench.progress import Progress
from bench.sample import Load
from bench.servers import Running, Work, serving, vhostblk
from bench.turns import Tools

IDLE_SECONDS = 10.0
SETTLE_SECONDS = 1.0
"""For the spin window, and what follows a connection, to be over."""
SLOW_SECONDS = 12.0
"""For the last look for slow requests to be over, 10 s behind the last request, too."""
DEVICES = 64
QUEUES = 4


@dataclass(frozen=True, slots=True)
class Idle:
    """
    A connected device without requests.

    Args:
        wakes: Context switches of all threads, per second.
        cpu: CPU milliseconds per second.
    """

    wakes: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Resident:
    """
    Private memory, in MiB: RssAnon and RssFile; guest memory is RssShmem.

    Args:
        one: Of a server with one device.
        further: Of each further device of the same process.
    """

    one: float
    further: float


def parse_status(text: str) -> dict[str, int]:
    """Read the numbers of /proc/PID/status, by name: kB, or counts."""
    rows = (row.partition(":") for row in text.splitlines())
    words = {key: value.split() for key, _, value in rows}
    return {key: int(said[0]) for key, said in words.items() if said and said[0].isdigit()}


def private_kib(pid: int) -> int:
    """Return what of a process is nobody else's, in KiB."""
    status = parse_status(Path(f"/proc/{pid}/status").read_text())
    return status["RssAnon"] + status["RssFile"]


def switches(pid: int) -> int:
    """Return how often the threads of a process were switched to something else."""
    tasks = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status"))
    counts = map(parse_status, tasks)
    return sum(c["voluntary_ctxt_switches"] + c["nonvoluntary_ctxt_switches"] for c in counts)


def allow_many_files() -> None:
    """Let us and our children have as many open files as the system allows: devices take some."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def connected(tools: Tools, devices: int) -> Iterator[Running]:
    """Serve null disks to one client, which has used every queue and now keeps still."""
    work = Work(name="null", size=1 << 30, queues=QUEUES, devices=devices)
    used = Load(depth=32, queues=QUEUES, seconds=0.2)
    with serving(vhostblk(), work, tools.scratch, tools.server_core) as server:
        server.go_on()
        command = client_load.words(tools.client, server, used, "hold=1")
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            if client.stdout is None or not client.stdout.readline():
                raise SystemExit(f"the client gave up on {devices} devices")
            time.sleep(SETTLE_SECONDS)
            yield server
        finally:
            client.communicate()


def idle(tools: Tools, seconds: float = IDLE_SECONDS) -> Idle:
    """Watch one idle device for so long."""
    with connected(tools, 1) as server:
        time.sleep(SLOW_SECONDS)
        count, cpu = switches(server.pid), clock(server.pid)
        time.sleep(seconds)
        count, cpu = switches(server.pid) - count, clock(server.pid) - cpu
    return Idle(wakes=count / seconds, cpu=cpu * 1000 / seconds)


def resident(tools: Tools, devices: int = DEVICES) -> Resident:
    """Compare a server with one device to one with many."""
    kib = {}
    for count in (1, devices):
        with connected(tools, count) as server:
            kib[count] = private_kib(server.pid)
    further = (kib[devices] - kib[1]) / (devices - 1)
    return Resident(one=kib[1] / 1024, further=further / 1024)


def main() -> None:
    """Print a row for each number of devices."""
    parser = argparse.ArgumentParser(prog="python -m bench.resident", description=__doc__)
    parser.add_argument("--devices", default="1,8,64,256", help="default: %(default)s")
    args = parser.parse_args()
    allow_many_files()
    print(f"{QUEUES} queues of 256 in each device; null disks, used and then idle")
    print(f"{'devices':>8} {'private MiB':>12} {'each further KiB':>17} {'threads':>8}")
    first: tuple[int, int] | None = None
    with tempfile.TemporaryDirectory(prefix="vhb-") as name:
        scratch = Path(name)
        client, probe = client_load.build(scratch), scratch
        tools = Tools(client, probe, scratch, 0, 1, Progress(1))
        for count in map(int, args.devices.split(",")):
            with connected(tools, count) as server:
                kib = private_kib(server.pid)
                threads = len(list(Path(f"/proc/{server.pid}/task").iterdir()))
            further = (kib - first[1]) / (count - first[0]) if first else 0.0
            first = first or (count, kib)
            print(f"{count:8} {kib / 1024:12.1f} {further:17.1f} {threads:8}", flush=True)


if __name__ == "__main__":
    main()
