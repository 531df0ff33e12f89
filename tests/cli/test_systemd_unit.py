import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from vhostblk.cli import main, systemd_unit

KINDS = ["service", "socket"]
EXPOSURE = 2.0
"""What systemd-analyze calls OK; a service without any hardening has 9.6."""


@pytest.fixture
def analyze() -> str:
    """Return systemd-analyze."""
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed (Debian: systemd)")
    return found


@pytest.fixture
def units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return a directory with both units, as they are printed."""
    for kind in KINDS:
        assert main.main(["systemd-unit", kind, "--program", sys.executable]) == 0
        (tmp_path / f"vhostblk@.{kind}").write_text(capsys.readouterr().out)
    return tmp_path


def test_units_start_what_they_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """The program's path is in every command, a percent sign in it doubled."""
    assert main.main(["systemd-unit", "service", "--program", "/opt/100%/vhostblk"]) == 0
    text = capsys.readouterr().out
    commands = re.findall(r"^Exec\w+=(\S+) (\w+)", text, re.MULTILINE)
    assert commands == [("/opt/100%%/vhostblk", "serve"), ("/opt/100%%/vhostblk", "upgrade")]
    assert systemd_unit.INSTALLED not in text


def test_units_have_the_program_of_the_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without --program it is what would be started by name."""
    program = tmp_path / "vhostblk"
    program.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main.main(["systemd-unit", "service"]) == 0
    assert f"ExecStart={program} serve" in capsys.readouterr().out


def test_every_limit_has_its_reason(units: Path) -> None:
    """Each setting that takes something from the service has a comment in front of it."""
    text = (units / "vhostblk@.service").read_text()
    section = text.partition("# ---- what a server needs, and nothing else ----\n")[2]
    lines = section.splitlines()
    assert len(lines) > 40
    for before, line in pairwise(["", *lines]):
        assert line.startswith("# ") or before.startswith("# "), line


@pytest.mark.parametrize("kind", KINDS)
def test_systemd_understands_them(analyze: str, units: Path, kind: str) -> None:
    """No setting that it does not know, no value that it would ignore."""
    instance = units / f"vhostblk@vm0.{kind}"
    instance.symlink_to(units / f"vhostblk@.{kind}")
    result = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(instance)],
        capture_output=True,
        text=True,
        env={"SYSTEMD_UNIT_PATH": f"{units}:"},
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_systemd_finds_little_to_object_to(analyze: str, units: Path) -> None:
    """The service's exposure is low; what is left is that it runs as root, and sees devices."""
    result = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(units / "vhostblk@.service")],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", result.stdout)
    assert found is not None, result.stdout + result.stderr
    assert float(found[1]) <= EXPOSURE, result.stdout
