"""What is printed and kept: a block of the table for each line, a document for JSON."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from bench.figures import AGAIN, noise, over, ratios, short, spread
from bench.sample import Sample
from bench.turns import Measured

FORMAT = 1
"""Of the document; raised when a reader of an older one would misread it."""

HEAD = (
    f"{'':26} {'IOPS (all turns)':>32} {'p50/p99 us':>15} {'cpu':>7} {'client':>7}  "
    "ours / theirs (all turns)"
)


def version(*command: str) -> str:
    """Return the first line that a program says of its version; what is not there says so."""
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return f"{command[0]}: not here"
    return done.stdout.splitlines()[0]


def about() -> dict[str, str]:
    """Return what was measured where: versions, kernel, CPUs."""
    models = [
        row.partition(":")[2].strip()
        for row in Path("/proc/cpuinfo").read_text().splitlines()
        if row.startswith("model name")
    ]
    return {
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "vhostblk": metadata.version("vhostblk"),
        "qemu-storage-daemon": version("qemu-storage-daemon", "--version"),
        "fio": version("fio", "--version"),
        "kernel": os.uname().release,
        "cpus": f"{os.cpu_count()} of {models[0] if models else os.uname().machine}",
    }


def row(name: str, samples: Sequence[Sample]) -> str:
    """Return the figures of one who took turns: medians, and the spread of the rate."""
    rate = over(samples, lambda one: one.iops)
    ends = f"({rate.low:,.0f}-{rate.high:,.0f})"
    p50, p99 = (over(samples, figure).median for figure in (_p50, _p99))
    cpu = _cost(over(samples, lambda one: one.server_cpu_us).median)
    client = _cost(over(samples, lambda one: one.client_cpu_us).median)
    latency = f"{short(p50):>7}/{short(p99):<7}"
    return f"  {name:24} {rate.median:11,.0f} {ends:>20} {latency} {cpu:>7} {client:>7}"


def _cost(us: float) -> str:
    return short(us) if us else "-"


def _p50(sample: Sample) -> float:
    return sample.p50_us


def _p99(sample: Sample) -> float:
    return sample.p99_us


def block(measured: Measured) -> str:
    """Return a line of the bench as text: the load, then a row for each who took turns."""
    samples = measured.samples
    first = next(iter(samples))
    notes = [f"A/A {noise(samples):.2f}"]
    if measured.repeats:
        notes.append(f"{measured.repeats} runs repeated")
    if measured.disturbed:
        notes.append(f"{measured.disturbed} of those that count were disturbed")
    rows = [f"{measured.line.name}  [{'; '.join(notes)}]"]
    for name, runs in samples.items():
        ratio = "" if name == first else f"  {spread(ratios(samples[first], runs))}"
        rows.append(row(name, runs) + ratio)
    return "\n".join(rows)


def document(measured: Measured) -> dict[str, object]:
    """Return a line of the bench for JSON."""
    entries = {entry.name: entry for entry in measured.line.entries}
    return {
        "name": measured.line.name,
        "repeats": measured.repeats,
        "noise": round(noise(measured.samples), 4),
        "entries": [
            {
                "name": name,
                "work": entries[name].work.name,
                "devices": entries[name].work.devices,
                "load": asdict(entries[name].load),
                "again": name.endswith(AGAIN),
                "rival": entries[name].rival,
                "command": shlex.join(measured.commands.get(name, [])),
                "samples": [sample.document() for sample in runs],
            }
            for name, runs in measured.samples.items()
        ],
    }


def write(path: Path, content: Mapping[str, object]) -> None:
    """Write a document; whole, or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps({"format": FORMAT, **content}, indent=1) + "\n")
    fresh.replace(path)


def read(path: Path) -> dict[str, object]:
    """
    Read what `write` wrote.

    Raises:
        SystemExit: It is something else.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SystemExit(f"{path}: not a result of `python -m bench --json` of this version")
    return content
