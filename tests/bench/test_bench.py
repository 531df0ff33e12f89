"""The bench runs; what it measures is not asserted here (speed lives in `make bench`)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("work", ["null", "tmpfs"])
def test_bench_prints_a_ratio_for_every_load(work: str, tmp_path: Path) -> None:
    """Both servers serve the same client in turn, and each load gives one line of figures."""
    command = [sys.executable, "-m", "bench", "--work", work, "--op", "read", "--depth", "1,8"]
    command += ["--seconds", "0.2", "--turns", "2", "--directory", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    lines = done.stdout.splitlines()
    loads = [line for line in lines if line.startswith(work)]
    assert [int(line.split()[2]) for line in loads] == [1, 8]
    assert all(re.search(r"\d+\.\d\d \(\d+\.\d\d-\d+\.\d\d\)$", line) for line in loads)
