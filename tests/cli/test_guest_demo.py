from pathlib import Path

import pytest
from guest_boot import fake_qemu

from vhostblk.cli import guest_demo
from vhostblk.cli.guest_vm import GuestError


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take no program along: a guest that is not booted needs none."""
    monkeypatch.setattr("vhostblk.cli.guest_vm.PROGRAMS", ())


def test_run_tells_what_the_guest_reports(tmp_path: Path) -> None:
    """Each step reaches the person as a sentence; the rest of the console does not."""
    console = r"print('noise\n@@ formatted ext4\n@@ unknown thing\n@@ exit 0')"
    tools = fake_qemu.make(tmp_path, console)
    told: list[str] = []

    outcome = guest_demo.run(tools, tmp_path / "s", queues=1, timeout_s=5, tell=told.append)

    assert [line.split(maxsplit=1)[1] for line in told[1:]] == [
        "formatted it as ext4",
        "powered off, exit status 0",
    ]
    assert outcome.said == {"formatted": "ext4", "unknown": "thing", "exit": "0"}
    assert "noise" in outcome.console


def test_run_shows_the_console_of_a_guest_that_failed(tmp_path: Path) -> None:
    """A demonstration that fails says why: the guest's own words are in the error."""
    tools = fake_qemu.make(tmp_path, r"print('mke2fs: Input/output error\n@@ exit 1')")

    with pytest.raises(GuestError, match="mke2fs: Input/output error"):
        guest_demo.run(tools, tmp_path / "socket", queues=1, timeout_s=5, tell=lambda _line: None)
