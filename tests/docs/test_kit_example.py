"""The example project that tests a home-made disk, run as its owner would."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2] / "docs/examples/test-kit"


def run(directory: Path) -> tuple[int, str]:
    """Run ``pytest`` in the project."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly"]
    done = subprocess.run(
        command, cwd=directory, check=False, capture_output=True, text=True, timeout=100
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of it."""
    return Path(shutil.copytree(PROJECT, tmp_path / "striped"))


@pytest.mark.slow
def test_the_project_passes_its_own_tests(project: Path) -> None:
    """The conformance tests and its own: some hundred."""
    status, said = run(project)
    assert status == 0, said
    assert int(said.rpartition(" passed")[0].split()[-1]) > 90


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("stripe // 2 * STRIPE + within, piece", "stripe // 2 * STRIPE, piece"),
        ("self.fds[stripe % 2]", "self.fds[0]"),
        ("os.pwritev(fd, [piece], at)", "os.pwritev(fd, [bytes(len(piece))], at)"),
    ],
)
def test_the_project_s_tests_find_bugs(project: Path, right: str, wrong: str) -> None:
    """A place that is wrong, a file that is, bytes that are: each fails several tests."""
    program = project / "striped.py"
    text = program.read_text()
    assert right in text
    program.write_text(text.replace(right, wrong))
    status, said = run(project)
    assert status == 1, said
    assert int(said.rpartition(" failed")[0].split()[-1]) > 3
