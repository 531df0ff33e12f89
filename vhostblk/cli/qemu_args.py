"""
``vhostblk qemu-args``: what QEMU must be given to use a served disk.

The guest's memory has to be a memfd with share=on: the back-end maps the descriptors QEMU sends,
and anonymous memory has none.
"""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import click

from vhostblk.cli import confidential, options
from vhostblk.cli.confidential import Confidential, Said


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """
    A disk as one QEMU is to see it.

    Args:
        socket_path: Where the back-end listens, or QEMU does.
        num_queues: Virtqueues; at most what the back-end serves.
        memory: The guest's memory, as QEMU writes sizes; None: set up elsewhere.
        machine: QEMU's machine type; None: named elsewhere, or QEMU's default.
        id: Name of the character device; each disk of a guest needs its own.
        chardev_options: More of the character device's properties.
        device_options: More of the device's properties.
        guest: What encrypts the guest; None: nothing does.
    """

    socket_path: Path
    num_queues: int = 1
    memory: str | None = "1G"
    machine: str | None = None
    id: str = "vhostblk0"
    chardev_options: tuple[str, ...] = ()
    device_options: tuple[str, ...] = ()
    guest: Confidential | None = None
    listens: bool = False
    """QEMU listens, and waits there for the back-end before it boots."""


def arguments(attachment: Attachment) -> list[str]:
    """
    Say what QEMU's command line needs.

    Returns:
        Arguments, not yet quoted for a shell.
    """
    path = os.path.abspath(attachment.socket_path)  # noqa: PTH100 - must not follow links
    device = ("vhost-user-blk-pci", f"chardev={attachment.id}")
    platform = confidential.DEVICE_OPTIONS if attachment.guest else ()
    chardev = ("socket", f"id={attachment.id}", f"path={path.replace(',', ',,')}")
    server = ("server=on",) if attachment.listens else ()
    return [
        *_memory(attachment),
        *("-chardev", ",".join((*chardev, *server, *attachment.chardev_options))),
        "-device",
        ",".join(
            (
                *device,
                f"num-queues={attachment.num_queues}",
                *platform,
                *attachment.device_options,
            )
        ),
    ]


def _memory(attachment: Attachment) -> list[str]:
    if attachment.memory is None:
        return []
    guest = attachment.guest
    support = f"confidential-guest-support={confidential.OBJECT_ID}" if guest else None
    kind = attachment.machine or ("q35" if guest else None)
    machine = ",".join(filter(None, (kind, support, "memory-backend=mem")))
    return [
        *("-m", attachment.memory),
        *("-object", f"memory-backend-memfd,id=mem,size={attachment.memory},share=on"),
        *(("-object", confidential.qemu_object(guest)) if guest else ()),
        *("-machine", machine),
    ]


@click.command("qemu-args", short_help="Print what QEMU needs to use a served disk.")
@click.option(
    "--socket-path",
    metavar="PATH",
    type=click.Path(readable=False, path_type=Path),
    help="The socket `vhostblk serve` listens on; it need not exist yet.",
)
@click.option(
    "--connect",
    metavar="PATH",
    type=click.Path(readable=False, path_type=Path),
    help="Instead: what `vhostblk serve --connect` says; QEMU listens there and waits for it.",
)
@options.guest_queues
@click.option(
    "--memory",
    default="1G",
    show_default=True,
    metavar="SIZE",
    callback=options.parsed(options.qemu_size),
    help="The guest's memory, as in QEMU's -m.",
)
@click.option(
    "--machine",
    metavar="TYPE",
    help="QEMU's machine type.  [default: q35 for a confidential guest, else QEMU's]",
)
@click.option(
    "--id",
    "name",
    default="vhostblk0",
    show_default=True,
    callback=options.parsed(options.qemu_id),
    help="Name of the character device; a second disk needs another.",
)
@click.option(
    "--reconnect-ms",
    type=click.IntRange(1),
    metavar="MILLISECONDS",
    help="Have QEMU connect again when the back-end was restarted, trying this often (QEMU 9.2 "
    "and later; before, add reconnect=SECONDS to its -chardev).",
)
@click.option(
    "--device-only",
    is_flag=True,
    help="Leave the memory out: a second disk, or shared memory that is already set up.",
)
@confidential.options
def qemu_args(
    *,
    socket_path: Path | None,
    connect: Path | None,
    num_queues: int,
    memory: str,
    machine: str | None,
    name: str,
    reconnect_ms: int | None,
    device_only: bool,
    **said: Unpack[Said],
) -> None:
    """
    Print the QEMU arguments that attach a served disk, on one line.

    They add to a command line that boots a guest: paste them, or let the shell do it.

    \b
    Examples:
      vhostblk qemu-args --socket-path /run/vm0.sock
      qemu-system-x86_64 guest.img $(vhostblk qemu-args --socket-path /run/vm0.sock)
      vhostblk qemu-args --socket-path /run/vm0.sock --reconnect-ms 100
      vhostblk qemu-args --socket-path /run/vm0-b.sock --id b --device-only
      vhostblk qemu-args --socket-path /run/vm0.sock --memory 4G --sev-snp
      vhostblk qemu-args --connect /run/qemu-vm0.sock
    """  # noqa: D301 - \b keeps click from joining the lines of the examples
    if connect is not None and reconnect_ms is not None:
        raise click.UsageError(
            "--reconnect-ms is for a QEMU that connects; with --connect it is vhostblk that does.",
            click.get_current_context(),
        )
    attachment = Attachment(
        socket_path=options.one_path(socket_path=socket_path, connect=connect),
        listens=connect is not None,
        num_queues=num_queues,
        memory=None if device_only else memory,
        machine=machine,
        id=name,
        chardev_options=() if reconnect_ms is None else (f"reconnect-ms={reconnect_ms}",),
        guest=confidential.chosen(said),
    )
    click.echo(shlex.join(arguments(attachment)))
