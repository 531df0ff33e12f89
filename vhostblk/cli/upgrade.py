"""``vhostblk upgrade``: have a server replaced while its guests run."""

import os
import select
import signal
from collections.abc import Mapping
from pathlib import Path

import click

from vhostblk.cli import rpc
from vhostblk.cli.seconds import timeout_option
from vhostblk.errors import VhostBlkError

SECONDS = 120.0
"""How long it may take: more than the sum of the server's own bounds."""


@click.command("upgrade", short_help="Replace a server while guests run.")
@click.option(
    "--control",
    metavar="PATH",
    envvar="VHOSTBLK_CONTROL",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="The socket given to `vhostblk serve --control`.",
)
@click.option(
    "--pid",
    type=click.IntRange(min=1),
    metavar="PID",
    help="Instead: the server's process; how it went is in its log.",
)
@click.option(
    "--exec",
    "program",
    metavar="COMMAND",
    help="With --control: start this in place of the server's own program, with the same "
    "arguments behind it.",
)
@timeout_option(SECONDS, "How long it may take.")
def upgrade(*, control: Path | None, pid: int | None, program: str | None, timeout: float) -> None:
    """
    Replace a server by a new process while guests run on.

    The new process is started with the same arguments, of whatever version is
    installed by now. Guests keep their connection and wait for some
    milliseconds. If it cannot take over, the old one goes on as if nothing had
    happened.

    \b
    Examples:
      vhostblk upgrade --control /run/vhostblk.sock
      vhostblk upgrade --control /run/vhostblk.sock --exec /opt/new/bin/vhostblk
      vhostblk upgrade --pid $(systemctl show -P MainPID vhostblk@vm0)
    """  # noqa: D301 - \b keeps click from joining lines
    if (pid is None) == (control is None):
        raise click.UsageError(
            "Give --control PATH or --pid PID, one of them.", click.get_current_context()
        )
    if control is not None:
        click.echo(_by_control(control, program, timeout))
        return
    if program is not None:
        raise click.UsageError(
            "--exec needs --control: a signal carries no command.", click.get_current_context()
        )
    if pid is not None:
        click.echo(_by_signal(pid, timeout))


def _by_control(control: Path, program: str | None, seconds: float) -> str:
    params = None if program is None else [program]
    result = rpc.call(control, "upgrade", params, seconds=seconds)
    if not isinstance(result, Mapping):
        raise VhostBlkError(f"{control}: who listens there is no vhostblk")
    said = f"process {result['pid']} has taken over"
    paused = result["paused_seconds"]
    if isinstance(paused, float):
        said += f"; guests were paused for {paused * 1000:.1f} ms"
    return said


def _by_signal(pid: int, seconds: float) -> str:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        raise VhostBlkError(f"there is no process {pid}") from None
    try:
        _check_heeds(pid)
        signal.pidfd_send_signal(process, signal.SIGUSR2)
        ended, _, _ = select.select([process], [], [], seconds)
    except PermissionError:
        raise VhostBlkError(f"process {pid} is somebody else's: ask as its user or root") from None
    finally:
        os.close(process)
    if not ended:
        raise VhostBlkError(f"process {pid} still serves after {seconds:g} s: see its log")
    return f"process {pid} has handed over, if its log says so"


def _check_heeds(pid: int) -> None:
    """Make sure that SIGUSR2 would not just kill whoever that is."""
    status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    if not int(caught.split()[1], 16) >> (signal.SIGUSR2 - 1) & 1:
        raise VhostBlkError(
            f"process {pid} does not heed SIGUSR2: is it a vhostblk that serves already?"
        )
