"""The tutorial of ten lines, typed as it stands there: from pip to a real guest."""

import os
import re
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from guest_boot import tools

from vhostblk.cli.guest_vm import make_initramfs

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial/ten-lines.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [text for language, text in BLOCKS if not language]
(PROGRAM,) = [text for language, text in BLOCKS if language == "python"]
(STOP,) = re.findall(r"^Ctrl-a x ends QEMU, `(.*)` the disk\.$", PAGE, re.MULTILINE)
CTRL_A_X = b"\x01x"
PROMPT = b"# "
SCRIPT = """say sectors "$(cat /sys/block/vda/size)"
PS1='# ' sh -i </dev/console >/dev/console 2>&1
"""
"""A guest that has somebody at its console."""
TIMEOUT_S = 100.0


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


class Terminal:
    """
    What is typed, and what can be seen.

    Args:
        process: A shell; its output is one pipe.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._keys, self._screen = process.stdin, process.stdout
        self._deadline = time.monotonic() + TIMEOUT_S
        self._all = b""
        self._typed = 0

    @property
    def seen(self) -> bytes:
        """All of it, without what asks a terminal where its cursor is."""
        return re.sub(rb"\x1b\[6n|\r", b"", self._all)

    def read(self) -> bool:
        """See more, or that nothing more comes."""
        left = self._deadline - time.monotonic()
        assert select.select([self._screen], [], [], max(left, 0.0))[0], self.seen[-2000:]
        more = os.read(self._screen.fileno(), 65536)
        self._all += more
        return bool(more)

    def wait_for_prompt(self) -> None:
        """See the guest's shell wait for a command."""
        while not self.seen[self._typed :].endswith(b"\n" + PROMPT):
            assert self.read(), self.seen[-2000:]

    def type(self, keys: bytes) -> None:
        self._typed = len(self.seen)
        self._keys.write(keys)
        self._keys.flush()


@pytest.mark.guest
def test_the_page_works_word_for_word(here: Path) -> None:
    """What is typed ends with the disk's bytes, read by Linux in QEMU; then all of it ends."""
    install, serve, attach, inside = COMMANDS
    (here / "hello.py").write_text(PROGRAM.replace("/tmp/", f"{here}/"))
    typed = install.split("\n", 1)[1] + serve  # the clone is there
    typed += f"while [ ! -S {here}/hello.sock ]; do sleep 0.1; done\n"  # as a reader takes longer
    typed += attach.replace("/tmp/", f"{here}/") + STOP + "\nwait\n"
    with subprocess.Popen(
        ["bash", "-u", "-e", "-c", typed],
        cwd=here,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as shell:
        try:
            terminal = Terminal(shell)
            for line in inside.splitlines(keepends=True):
                if line.startswith("# "):
                    terminal.wait_for_prompt()
                    terminal.type(line.removeprefix("# ").encode())
            terminal.wait_for_prompt()
            terminal.type(CTRL_A_X)
            while terminal.read():
                pass
            assert shell.wait(TIMEOUT_S) == 0, terminal.seen[-2000:]
        except BaseException:
            os.killpg(shell.pid, signal.SIGKILL)  # the disk and QEMU as well
            raise
    screen = "\n".join(line.rstrip() for line in terminal.seen.decode().splitlines())
    assert "sectors 2048" in screen
    assert f"\n{inside}" in screen
