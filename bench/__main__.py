"""
Measure vhostblk against qemu-storage-daemon: one client, alternating, one run, ratios.

Each line is one load on one disk.  The servers take turns (A B C, A B C, …), pinned to one CPU,
the client to another; the ratio of a line is the median over turns of our rate to the best peer's,
with its smallest and largest.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

from bench import load, servers
from bench.load import Load, Sample
from bench.servers import Running, Work

SIZE = 1 << 30
SERVER_CORE, CLIENT_CORE = 0, 1


def parse() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--work", default="null,tmpfs,file", help="disks (default: %(default)s)")
    parser.add_argument("--op", default="read,write", help="default: %(default)s")
    parser.add_argument("--depth", default="1,8,32,128", help="default: %(default)s")
    parser.add_argument("--bytes", type=int, default=4096, help="of a request")
    parser.add_argument("--order", choices=("rand", "seq"), default="rand")
    parser.add_argument("--wait", choices=("block", "poll"), default="block")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--turns", type=int, default=3, help="alternations")
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(".cache/bench"),
        help="on a disk file system, for the file (default: %(default)s)",
    )
    return parser.parse_args()


def filled(path: Path) -> Path:
    """Write every byte of a file of SIZE, so that no run pays for the first touch."""
    if not path.exists() or path.stat().st_size != SIZE:
        chunk = os.urandom(1 << 20)
        with path.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(chunk)
            os.fsync(file.fileno())
    return path


def warm(work: Work) -> None:
    """Read a file into the page cache, so that who comes first does not fetch it for the rest."""
    if work.path is not None:
        with work.path.open("rb", buffering=0) as file:
            while file.read(1 << 20):
                pass


def make_works(names: list[str], directory: Path, shm: Path) -> Iterator[Work]:
    """Yield the disks asked for, their files filled."""
    for name in names:
        match name:
            case "null":
                yield Work(name, SIZE)
            case "tmpfs":
                yield Work(name, SIZE, filled(shm / "disk.img"))
            case "file":
                yield Work(name, SIZE, filled(directory / "disk.img"))
            case _:
                raise SystemExit(f"--work {name}: give null, tmpfs or file")


def about() -> str:
    """Return what was measured where: versions, kernel, CPUs, and what a column means."""
    qsd = subprocess.run(
        ["qemu-storage-daemon", "--version"], check=True, capture_output=True, text=True
    )
    return (
        f"vhostblk {metadata.version('vhostblk')}, {qsd.stdout.splitlines()[0]}, "
        f"Linux {os.uname().release}, {os.cpu_count()} CPUs\n"
        "cpu, client: CPU microseconds per request of the server and of the client\n"
    )


def line(samples: dict[str, list[Sample]]) -> str:
    """Return the figures of one load: ours, the best peer's, their ratio with its spread."""
    ours = samples["vhostblk"]
    best = max(
        (name for name in samples if name != "vhostblk"),
        key=lambda name: statistics.median(s.iops for s in samples[name]),
    )
    theirs = samples[best]
    ratios = [a.iops / b.iops for a, b in zip(ours, theirs, strict=True)]

    def cell(runs: list[Sample]) -> str:
        rate = statistics.median(s.iops for s in runs) / 1000
        p50, p99 = (statistics.median(getattr(s, f) for s in runs) for f in ("p50_us", "p99_us"))
        cpu = statistics.median(s.server_cpu_us for s in runs)
        client = statistics.median(s.client_cpu_us for s in runs)
        return f"{rate:8.1f}k {p50:6.0f}/{p99:<6.0f} {cpu:5.2f} {client:6.2f}"

    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    return f"{cell(ours)} | {cell(theirs)} {best:13} | {statistics.median(ratios):5.2f} ({spread})"


def measure(
    client: Path, running: dict[str, Running], todo: Load, turns: int
) -> dict[str, list[Sample]]:
    """Let every server take its turn, *turns* times."""
    samples: dict[str, list[Sample]] = {name: [] for name in running}
    for _ in range(turns):
        for name, server in running.items():
            samples[name].append(load.run(client, server, todo, CLIENT_CORE))
    return samples


def main() -> None:
    """Run the matrix and print a line per load."""
    args = parse()
    args.directory.mkdir(parents=True, exist_ok=True)
    print(about())
    cell = f"{'IOPS':>9} {'p50/p99 us':>13} {'cpu':>5} {'client':>5}"
    print(f"{'':17} | {'vhostblk':33} | {'best of the peers':48} | ratio")
    print(f"{'disk':6} {'op':5} {'QD':>4} | {cell} | {cell} {'':13} | median (all)")
    with (
        tempfile.TemporaryDirectory(prefix="vhb-") as scratch,
        tempfile.TemporaryDirectory(prefix="vhb-", dir="/dev/shm") as shm,
    ):
        client = load.build(Path(scratch))
        for work in make_works(args.work.split(","), args.directory, Path(shm)):
            for op in args.op.split(","):
                for depth in map(int, args.depth.split(",")):
                    todo = Load(
                        op=op,
                        bytes=args.bytes,
                        depth=depth,
                        seconds=args.seconds,
                        wait=args.wait,
                        order=args.order,
                    )
                    warm(work)
                    with ExitStack() as stack:
                        running = {
                            peer.name: stack.enter_context(
                                servers.serving(peer, work, Path(scratch), SERVER_CORE)
                            )
                            for peer in servers.peers(work)
                        }
                        samples = measure(client, running, todo, args.turns)
                    print(f"{work.name:6} {op:5} {depth:4} | {line(samples)}", flush=True)


if __name__ == "__main__":
    main()
