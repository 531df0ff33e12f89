"""The bench runs; what it measures is not asserted here (speed lives in `make bench`)."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.works import SIZE

pytestmark = pytest.mark.slow


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "bench", "--seconds", "0.1", "--turns", "2", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    return done.stdout


@pytest.mark.parametrize(
    ("devices", "queues", "depths"),
    [("1", "1", "1,8"), ("2", "4", "8")],
    ids=["one", "two devices, four queues"],
)
def test_every_server_takes_every_turn(
    devices: str, queues: str, depths: str, tmp_path: Path
) -> None:
    """The same client drives all of them on each load, and all samples are kept."""
    file = tmp_path / "result.json"
    printed = run(
        *("--work", "null", "--op", "read", "--depth", depths, "--directory", str(tmp_path)),
        *("--queues", queues, "--devices", devices, "--json", str(file)),
    )
    content = json.loads(file.read_text())
    assert len(content["lines"]) == len(depths.split(","))
    assert all(line["name"] in printed for line in content["lines"])
    for line in content["lines"]:
        names = [entry["name"] for entry in line["entries"]]
        assert names == ["vhostblk", "vhostblk again", "qsd"]
        samples = [sample for entry in line["entries"] for sample in entry["samples"]]
        assert len(samples) == 2 * 3
        assert all(s["iops"] > 0 and s["server_cpu_us"] > 0 for s in samples)
        assert all(0 < s["least"] <= s["most"] for s in samples)


def test_another_server_is_driven_by_its_command(tmp_path: Path) -> None:
    """``--peer`` puts any back-end beside ours, here the minimal responder."""
    file = tmp_path / "result.json"
    peer = f"mine={sys.executable} -m bench.respond --status {{socket}} {{size}}"
    run(
        *("--work", "null", "--op", "write", "--depth", "4", "--wait", "poll"),
        *("--peer", peer, "--directory", str(tmp_path), "--json", str(file)),
    )
    [line] = json.loads(file.read_text())["lines"]
    mine = next(entry for entry in line["entries"] if entry["name"] == "mine")
    assert f"--status {tmp_path.root}" in mine["command"]
    assert mine["command"].endswith(f" {SIZE}")
    assert all(sample["iops"] > 0 for sample in mine["samples"])


@pytest.mark.skipif(shutil.which("fio") is None, reason="fio is missing: `.ci/setup bench`")
def test_the_raw_file_takes_turns(tmp_path: Path) -> None:
    """On a file, fio without any virtio runs beside the servers."""
    file = tmp_path / "result.json"
    run(
        *("--work", "tmpfs", "--op", "read", "--depth", "1"),
        *("--directory", str(tmp_path), "--json", str(file)),
    )
    [line] = json.loads(file.read_text())["lines"]
    found = {entry["name"]: entry["samples"] for entry in line["entries"]}
    assert {"vhostblk", "qsd threads", "qsd io_uring", "qsd native", "fio psync"} <= set(found)
    assert all(sample["iops"] > 0 for sample in found["fio psync"])
