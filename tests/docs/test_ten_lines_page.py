"""The tutorial of ten lines, typed as it stands there: from pip to a real guest."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from guest_boot import tools

from vhostblk.cli.guest_vm import make_initramfs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial/ten-lines.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [text for language, text in BLOCKS if not language]
(PROGRAM,) = [text for language, text in BLOCKS if language == "python"]
SCRIPT = 'say seen "$(head -c 16 /dev/vda)"\nsay sectors "$(cat /sys/block/vda/size)"\n'


def test_the_program_has_ten_lines() -> None:
    """Or fewer, blank ones not counted."""
    assert len([line for line in PROGRAM.splitlines() if line.strip()]) <= 10


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return a directory with a clone, and a guest, as the reader has them."""
    clone = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(clone, check=True, capture_output=True).stdout.split(b"\0")
    for name in filter(None, (os.fsdecode(one) for one in names)):
        if (ROOT / name).exists():
            target = tmp_path / "vhostblk" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    guest = tools()
    shutil.copy(guest.kernel, tmp_path / "vmlinuz")
    (tmp_path / "initrd.gz").write_bytes(make_initramfs(guest, SCRIPT, (), ()))
    return tmp_path


@pytest.mark.guest
def test_the_page_works_word_for_word(here: Path) -> None:
    """What is typed ends with the disk's bytes, read by Linux in QEMU."""
    install, serve, attach, _ = COMMANDS
    (here / "hello.py").write_text(PROGRAM.replace("/tmp/", f"{here}/"))
    typed = install.split("\n", 1)[1] + serve  # the clone is there
    typed += f"while [ ! -S {here}/hello.sock ]; do sleep 0.1; done\n"  # as a reader takes longer
    typed += attach.replace("/tmp/", f"{here}/") + "kill %1\n"
    done = subprocess.run(
        ["bash", "-eu", "-c", typed],
        cwd=here,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "seen hello, guest!" in done.stdout
    assert "sectors 2048" in done.stdout
