"""The ``vhostblk`` program: its commands, and how it ends."""

import sys
from collections.abc import Sequence

import click

from vhostblk.cli import report
from vhostblk.cli.bench import bench
from vhostblk.cli.ctl import ctl
from vhostblk.cli.demo import demo
from vhostblk.cli.libvirt_xml import libvirt_xml
from vhostblk.cli.qemu_args import qemu_args
from vhostblk.cli.serve import serve
from vhostblk.cli.systemd_unit import systemd_unit
from vhostblk.cli.upgrade import upgrade
from vhostblk.version import version


@click.group(invoke_without_command=True)
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


for command in (serve, ctl, qemu_args, libvirt_xml, demo, bench, upgrade, systemd_unit):
    vhostblk.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run ``vhostblk``.

    Args:
        argv: Arguments without the program's name; None: the process's own.

    Returns:
        The exit status.
    """
    return report.run(vhostblk, sys.argv[1:] if argv is None else argv, name="vhostblk")
