"""
Measure what the core itself costs per request: no guest, no thread, no socket, no wake-up.

The core's sources are compiled together with step.c, which lays 16 requests of 4 KiB and steps a
worker by hand.  Where the driver's addresses point, or what kind of ring it has, is all that
differs between the lines; they take turns in every round.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / "bench/step.c", ROOT / "bench/step_layers.c"]


def build(directory: Path) -> Path:
    """Compile the core and step.c as a release build does; return the program."""
    program = directory / "step"
    core = sorted(str(path) for path in (ROOT / "native/src").glob("*.c"))
    command = [
        "gcc",
        "-O3",
        "-flto=auto",
        "-std=gnu11",
        "-D_GNU_SOURCE",
    ]
    command += [f"-I{ROOT / 'native/include'}", f"-I{ROOT / 'native/src'}", *core]
    command += map(str, SOURCES)
    command += ["-l:liburing.a", "-lpthread", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def main() -> None:
    """Build, run pinned to one CPU, say how busy the machine was."""
    parser = argparse.ArgumentParser(prog="python -m bench.step", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--batches", type=int, default=50, help="of 16 requests, in a round")
    parser.add_argument("--core", type=int, default=1, help="the CPU (default: %(default)s)")
    args = parser.parse_args()
    print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    print("nanoseconds per request: median (p10 to p90), then the difference to direct\n")
    print(f"{'disk':6} {'op':5} {'addresses':10} {'ns':>8}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vhb-") as scratch:
        program = build(Path(scratch))
        counts = str(args.rounds), str(args.batches)
        subprocess.run(["taskset", "-c", str(args.core), str(program), *counts], check=True)


if __name__ == "__main__":
    main()
