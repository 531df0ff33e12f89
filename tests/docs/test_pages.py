"""The pages themselves: what they link to is there, and their commands are real commands."""

import grp
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vhostblk.cli import backend, backend_command, confidential, main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`]+`")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
ANSWERED = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
PROGRAMS = {"vhostblk": main.main, "vhostblk-backend": backend.main}


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in FENCE.findall(page.read_text()):
        if language in languages:
            yield text


def commands(page: Path) -> Iterator[list[str]]:
    """Every line of a block that is a call of one of our programs, split into words."""
    for block in blocks(page, "", "console", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and words[0] in PROGRAMS:
                yield words[:-1] if words[-1] == "&" else words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_inside_leads_somewhere(page: Path) -> None:
    """A relative link names a file that is there."""
    prose = CODE.sub("", FENCE.sub("", page.read_text()))
    links = [link for link in LINK.findall(prose) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_can_be_typed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments of each vhostblk command shown are ones the program takes."""
    monkeypatch.setattr(grp, "getgrnam", lambda _name: grp.getgrgid(0))
    monkeypatch.setenv("VHOSTBLK_CONTROL", "/run/vhostblk.ctl")  # as pages that need it say
    for program, *words in commands(page):
        command = backend_command.backend if program == "vhostblk-backend" else main.vhostblk
        if words[0] in main.COMMANDS:
            found = main.vhostblk.get_command(click.Context(main.vhostblk), words.pop(0))
            assert found is not None
            command = found
        answers = {"--help", "--print-capabilities"} & {*words}
        with command.make_context(program, words, resilient_parsing=bool(answers)):
            pass


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_printed_answer_is_what_is_printed(
    page: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Where a page shows a command's output below it, that is its output, on a host without SEV."""
    monkeypatch.setattr(confidential, "CPUID", tmp_path / "none")
    for block in blocks(page, "console"):
        for command, answer in ANSWERED.findall(block):
            program, *words = shlex.split(command, comments=True) or [""]
            if program in PROGRAMS and answer:
                assert PROGRAMS[program](words) == 0
                assert capsys.readouterr().out == answer
