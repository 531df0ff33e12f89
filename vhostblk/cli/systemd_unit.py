"""``vhostblk systemd-unit``: units that run a server under systemd, hardened."""

import importlib.resources
import shutil
from pathlib import Path

import click

INSTALLED = "/usr/bin/vhostblk"
"""Where the units in the package have the program."""


def unit(kind: str, program: Path) -> str:
    """
    Return a unit's text.

    Args:
        kind: ``service`` or ``socket``.
        program: What it starts.
    """
    directory = importlib.resources.files("vhostblk").joinpath("data", "systemd")
    text = directory.joinpath(f"vhostblk@.{kind}").read_text(encoding="utf-8")
    # A percent sign begins a specifier there.
    return text.replace(INSTALLED, str(program).replace("%", "%%"))


def this_program() -> Path:
    """Return where ``vhostblk`` is installed, as far as the PATH tells."""
    return Path(shutil.which("vhostblk") or INSTALLED)


@click.command("systemd-unit", short_help="Print a unit for systemd.")
@click.argument("kind", type=click.Choice(["service", "socket"]))
@click.option(
    "--program",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="What the service starts.  [default: vhostblk as found in the PATH]",
)
def systemd_unit(*, kind: str, program: Path | None) -> None:
    """
    Print a template unit: of the service, or of the socket it is started with.

    Both are needed, once for all disks; a disk is then an instance and a file
    that says what it is, /etc/vhostblk/NAME.conf.

    \b
    Examples:
      vhostblk systemd-unit service > /etc/systemd/system/vhostblk@.service
      vhostblk systemd-unit socket > /etc/systemd/system/vhostblk@.socket
    """  # noqa: D301 - \b keeps click from joining lines
    click.echo(unit(kind, this_program() if program is None else program), nl=False)
