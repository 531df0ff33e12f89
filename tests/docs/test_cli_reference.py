"""
The command line's reference shows the programs' own help texts.

Run as a program, this file writes them into the page:
``PYTHONPATH=. python tests/docs/test_cli_reference.py``.
"""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vhostblk.cli import backend_command, ctl, luks, main, trace

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
USAGE = re.compile(
    r"^```text\n(Usage: (vhostblk[a-z -]*?) (?:\[OPTIONS\]|[A-Z\[]).*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def help_text(program: str) -> str:
    """The help of ``vhostblk serve`` and the like, 80 columns wide."""
    command: click.Command = backend_command.backend
    name, *subcommands = program.split(" ")
    if name == "vhostblk":
        command = main.vhostblk
    for subcommand in subcommands:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), subcommand)
        assert found is not None
        command = found
    result = CliRunner(env={"COLUMNS": "80"}).invoke(command, ["--help"], prog_name=program)
    return result.output


PROGRAMS = ["vhostblk", *(f"vhostblk {name}" for name in main.COMMANDS)]
PROGRAMS += [f"vhostblk ctl {name}" for name in ctl.ctl.commands]
PROGRAMS += [f"vhostblk trace {name}" for name in trace.trace.commands]
PROGRAMS += [f"vhostblk luks {name}" for name in luks.luks.commands]
PROGRAMS.append("vhostblk-backend")


@pytest.mark.parametrize("program", PROGRAMS)
def test_page_shows_the_help_of(program: str) -> None:
    """Each command's help text is in the page as the program prints it."""
    shown = {name: text for text, name in USAGE.findall(PAGE.read_text())}
    assert shown.get(program) == help_text(program)


def write() -> None:
    page = USAGE.sub(lambda found: f"```text\n{help_text(found[2])}```", PAGE.read_text())
    PAGE.write_text(page)


if __name__ == "__main__":
    write()
