"""The guide to layers: typed from top to bottom on one server, it prints what it shows."""

import re
import shlex
from pathlib import Path

import pytest
import running

from vhostblk.cli import main
from vhostblk.disk.grammar import parse
from vhostblk.disk.make import make
from vhostblk.guest import Guest

PAGE = (running.ROOT / "docs/how-to/stack-layers.md").read_text()
SHOWN = re.compile(
    r"^```sh\n((?:(?!```).*\n)*)```\n\n```text\n((?:(?!```).*\n)*)```$", re.MULTILINE
)

FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
SPANS = [one.replace("\\|", "|") for one in re.findall(r"`([^`\n]+)`", FENCE.sub("", PAGE))]
STACKS = [one for one in SPANS if "|" in one and "'" not in one]


def printed(words: list[str], directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command of ours; return what it says."""
    if words[0] == "serve":  # which sets up logging
        return running.outcome("-m", "vhostblk", *words, cwd=directory)[1]
    main.main(words)
    told = capsys.readouterr()
    return told.out + told.err


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
        said = ""
        for commands, answer in answers:
            for line in commands.strip().splitlines():
                program, *words = shlex.split(line)
                if program == "vhostblk":
                    said = printed(words, tmp_path, capsys)
            pattern = re.escape(answer).replace("…", ".*")
            assert re.fullmatch(pattern, said), (commands, said)
        with Guest.connect(socket) as guest:
            assert guest.read(0, 512) == bytes(512)
    assert len(answers) > 5


@pytest.mark.parametrize("text", STACKS)
def test_stacks_in_the_text_can_be_made(text: str) -> None:
    """Whatever the page has with a bar in it, the grammar and the layers take."""
    if "python:" not in text:
        make(text)
    assert parse(text).layers


def test_there_are_such_stacks() -> None:
    """Some of every kind are found."""
    assert len(STACKS) > 10
