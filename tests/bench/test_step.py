"""The stepped measurement runs; what it measures is not asserted here."""

import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_step_prints_a_line_for_every_shape() -> None:
    """Every disk, direction, address and ring, and all but direct with a difference to it."""
    command = [
        sys.executable,
        "-m",
        "bench.step",
        "--rounds",
        "10",
        "--batches",
        "5",
        "--core",
        "0",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    lines = [line.split() for line in done.stdout.splitlines()[4:]]
    shapes = ["direct", "bounced", "iotlb-64", "iotlb-2048", "tracked"]
    shapes += ["packed", "in-order", "packed-ord", "record", "record-all", "log-off", "delay-off"]
    shapes += ["limit-off", "error-off", "stats", "parts-1", "parts-8", "told-1", "told-8"]
    assert [line[:3] for line in lines] == [
        [disk, op, shape]
        for disk in ("null", "memory")
        for op in ("read", "write")
        for shape in shapes
    ]
    spreads = [len(re.findall(r"\(-?\d+\.\d to -?\d+\.\d\)", " ".join(line))) for line in lines]
    assert spreads == ([1] + [2] * (len(shapes) - 1)) * 4
