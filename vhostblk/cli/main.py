"""The ``vhostblk`` program: its commands, and how it ends."""

import importlib
import sys
from collections.abc import Mapping, Sequence

import click

from vhostblk.cli import report
from vhostblk.version import version

COMMANDS: Mapping[str, str] = {
    "serve": "serve",
    "ctl": "ctl",
    "qemu-args": "qemu_args",
    "libvirt-xml": "libvirt_xml",
    "powercut": "powercut",
    "trace": "trace",
    "luks": "luks",
    "demo": "demo",
    "bench": "bench",
    "upgrade": "upgrade",
    "systemd-unit": "systemd_unit",
}
"""Each command's module in `vhostblk.cli`, and its function there."""


class Commands(click.Group):
    """
    A group that imports the command that is called, and no other.

    What a server has imported it keeps for as long as it runs.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        """Name all of them."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one; None: there is none of that name."""
        name = COMMANDS.get(cmd_name)
        if name is None:
            return None
        command: object = getattr(importlib.import_module(f"vhostblk.cli.{name}"), name)
        return command if isinstance(command, click.Command) else None


@click.group(cls=Commands, invoke_without_command=True)
@click.option("--version", "asked_version", is_flag=True, help="Print the version and exit.")
@click.pass_context
def vhostblk(context: click.Context, *, asked_version: bool) -> None:
    """
    Serve disks to virtual machines over vhost-user-blk.

    \b
    Examples:
      vhostblk serve --socket-path /run/vm0.sock disk.img
      vhostblk qemu-args --socket-path /run/vm0.sock
      vhostblk demo
    """  # noqa: D301 - \b keeps click from joining the lines of the examples
    if asked_version:
        click.echo(f"vhostblk {version()}")
        context.exit()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run ``vhostblk``.

    Args:
        argv: Arguments without the program's name; None: the process's own.

    Returns:
        The exit status.
    """
    return report.run(vhostblk, sys.argv[1:] if argv is None else argv, name="vhostblk")
