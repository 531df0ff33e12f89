"""The guide to layers: typed from top to bottom on one server, it prints what it shows."""

import re
import shlex
from pathlib import Path

import pytest
import running

from vhostblk.cli import main
from vhostblk.guest import Guest

PAGE = (running.ROOT / "docs/how-to/stack-layers.md").read_text()
SHOWN = re.compile(r"^```sh\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_what_the_page_shows_is_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each answer is the last command's above it; … is more of the same."""
    served = re.search(r"serve --socket-path /run/vm0.sock --control /run/vm0.ctl '(.*)'", PAGE)
    assert served is not None
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    monkeypatch.setenv("VHOSTBLK_CONTROL", str(tmp_path / "vm0.ctl"))
    socket = tmp_path / "vm0.sock"
    answers = SHOWN.findall(PAGE.replace("/run/", f"{tmp_path}/"))
    with running.serving("--control", tmp_path / "vm0.ctl", served[1], socket=socket):
        for commands, answer in answers:
            program, *words = shlex.split(commands.strip().splitlines()[-1])
            assert program == "vhostblk"
            main.main(words)
            told = capsys.readouterr()
            pattern = re.escape(answer).replace("…", ".*")
            assert re.fullmatch(pattern, told.out + told.err), (commands, told)
        with Guest.connect(socket) as guest:
            assert guest.read(0, 512) == bytes(512)
    assert len(answers) > 5
