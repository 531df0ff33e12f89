"""No virtio at all: fio on the file itself."""

import json
import shutil
import subprocess
from pathlib import Path

from bench.sample import Load, Sample, Unable

PERCENTILES = (0.01, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100)


def words(engine: str, path: Path, load: Load, *, direct: bool) -> list[str]:
    """
    Return fio's command.

    Args:
        engine: ``psync`` (which has one request under way) or ``io_uring``.
        path: The file.
        load: How.
        direct: Around the page cache.
    """
    pattern = {"rand": "rand", "seq": ""}[load.order] + load.op
    return [
        "fio",
        "--name=raw",
        f"--filename={path}",
        f"--rw={pattern}",
        f"--bs={load.bytes}",
        f"--ioengine={engine}",
        f"--iodepth={load.depth}",
        f"--direct={int(direct)}",
        f"--runtime={round(load.seconds * 1000)}ms",
        f"--ramp_time={round(load.seconds * 100)}ms",
        "--time_based",
        "--norandommap",
        "--invalidate=0",  # what is cached stays cached, as for the servers
        "--allow_file_create=0",
        "--thread",
        "--disable_clat=1",
        "--disable_slat=1",
        "--lat_percentiles=1",
        "--percentile_list=" + ":".join(map(str, PERCENTILES)),
        "--output-format=json",
    ]


def parse(text: str, op: str) -> Sample:
    """Read what fio has printed: JSON, behind warnings that it may have."""
    job = json.loads(text[text.index("{") :])["jobs"][0]
    iops = float(job[op]["iops"])
    found = job[op]["lat_ns"].get("percentile", {})
    latency = {f"{float(key):g}": ns / 1000 for key, ns in found.items()}
    latency["0"] = latency.pop("0.01", 0.0)
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * 1e6
    return Sample(
        iops=iops,
        latency_us=latency,
        client_cpu_us=cpu / iops if iops else 0.0,
    )


def run(engine: str, path: Path, load: Load, core: int, *, direct: bool) -> Sample:
    """
    Drive a file once, pinned to *core*.

    Raises:
        Unable: fio is missing, or fails.
    """
    if shutil.which("fio") is None:
        raise Unable("fio is missing: run `make bench`, which installs it")
    command = ["taskset", "-c", str(core), *words(engine, path, load, direct=direct)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Unable(f"fio: {done.stderr.strip()}")
    return parse(done.stdout, load.op)
