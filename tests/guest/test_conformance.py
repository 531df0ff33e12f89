"""The conformance tests as users run them: against our server, and against qemu-storage-daemon."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from guest_peers.qsd import SIZE, storage_daemon
from server_kit.serving import serving

from vhostblk.disk.memory import Memory
from vhostblk.engine.choose import EngineName

SUITE = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs"]
SUITE += ["vhostblk.guest.conformance"]


def outcome(directory: Path, *words: str | Path) -> tuple[int, str]:
    """Run the suite in an empty directory; return its exit status and what it said."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [*SUITE, *map(str, words)],
        check=False,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(params=sorted(set(get_args(EngineName)) - {"auto"}))
def socket(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Serve a disk in memory with each data plane."""
    with serving(request.param) as server:
        yield server.add(Memory(1 << 20), num_queues=4)


@pytest.mark.slow
def test_our_server_conforms(socket: Path, tmp_path: Path) -> None:
    """Every test passes, but for what is not offered; what writes needs a word more."""
    status, said = outcome(tmp_path, "--vhostblk-socket", socket, "--vhostblk-destroy")
    assert (status, " failed" in said, " error" in said) == (0, False, False), said
    status, said = outcome(tmp_path, "--vhostblk-socket", socket)
    assert status == 0, said
    assert " skipped" in said


# Of qemu-storage-daemon 10.0, as its block/export/vhost-user-blk-server.c makes its config space.
QSD_FAILS = {
    # SIZE_MAX is offered, and size_max is 0: no segment could have a byte.
    "test_limits_are_limits",
    # GET_CONFIG is answered with the first bytes, whatever the offset.
    "test_config_is_read_in_any_pieces",
}
# Its disk here can be written; packed rings and IN_ORDER it does not offer, and the tests that want
# them have one or the other in their parameters.
QSD_SKIPS = {"test_read_only_disk_is_not_written"}
QSD_LACKS = ("packed", "in-order")


@pytest.mark.slow
def test_it_finds_what_qemu_storage_daemon_does_otherwise(tmp_path: Path) -> None:
    """What fails there is known, by name; what is skipped could not be tested; the rest passes."""
    report = tmp_path / "report.xml"
    with storage_daemon(tmp_path, SIZE) as daemon:
        _, said = outcome(
            tmp_path, "--vhostblk-socket", daemon.path, "--vhostblk-destroy", "--junitxml", report
        )
    tests = {test.attrib["name"]: test for test in ET.parse(report).iter("testcase")}
    lacking = {name for name in tests if any(word in name for word in QSD_LACKS)}
    ended = {
        word: {name for name, test in tests.items() if test.find(word) is not None}
        for word in ("failure", "error", "skipped")
    }
    assert ended == {"failure": QSD_FAILS, "error": set(), "skipped": QSD_SKIPS | lacking}, said
    assert len(tests.keys() - lacking) > 50


@pytest.mark.slow
def test_what_cannot_be_tested_is_said_in_a_line(tmp_path: Path) -> None:
    """No option, no socket, no back-end: an error of use, before any test runs."""
    status, said = outcome(tmp_path)
    assert status == 4
    assert "need a back-end: --vhostblk-socket PATH" in said
    status, said = outcome(tmp_path, "--vhostblk-socket", tmp_path / "nothing")
    assert status == 4
    assert "start the backend first" in said.replace("back-end", "backend")
