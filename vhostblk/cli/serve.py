"""``vhostblk serve``: one disk on one socket, until SIGTERM."""

from pathlib import Path

import click
from click.core import ParameterSource

import vhostblk
from vhostblk.cli import options, report
from vhostblk.cli.seconds import Seconds
from vhostblk.disk.file import CacheMode
from vhostblk.disk.grammar import parse
from vhostblk.disk.make import beside, make


@click.command("serve", short_help="Serve a disk until SIGTERM.")
@click.argument("disk", required=False)
@options.socket
@options.connect
@click.option(
    "--socket-mode",
    metavar="MODE",
    default="600",
    show_default=True,
    callback=options.parsed(options.mode),
    help="Permission bits of the socket.",
)
@click.option(
    "--socket-owner",
    metavar="USER[:GROUP]",
    callback=options.parsed(options.owner),
    help="Owner of the socket, by name or number.",
)
@click.option("--serial", default="", help="What the guest reads as its serial; 20 bytes at most.")
@click.option(
    "--num-queues",
    type=click.IntRange(1, options.MAX_QUEUES),
    default=1,
    show_default=True,
    help="Virtqueues offered; QEMU may use fewer.",
)
@click.option(
    "--queue-size",
    type=int,
    default=1024,
    show_default=True,
    help="Descriptors a ring may have; a power of two.",
)
@options.switch(
    "--packed",
    "Offer packed rings; a guest uses them if its QEMU says packed=on, too.",
    default=True,
)
@options.switch(
    "--ring-reset",
    "Let a guest reset single queues.  Not with QEMU, which does not tell us of it.",
    default=False,
)
@click.option("--read-only", is_flag=True, help="Refuse writes of every kind.")
@click.option(
    "--cache",
    type=click.Choice([mode.value for mode in CacheMode]),
    help="Host cache of a file, with QEMU's meanings.  [default: writeback]",
)
@options.lock
@click.option(
    "--block-size",
    type=int,
    default=0,
    metavar="BYTES",
    help="What the guest's requests are a multiple of.  [default: what the disk says]",
)
@options.engine
@options.workers
@options.poll
@click.option(
    "--drain-timeout",
    type=Seconds(),
    metavar="SECONDS",
    help="How long a stop waits for requests in flight before it fails them.  [default: 20]",
)
@options.on_error
@click.option(
    "--slow-request",
    type=Seconds(zero=True),
    metavar="SECONDS",
    default=10,
    show_default=True,
    help="Log a request that takes longer, and when it is over; 0: none.",
)
@click.option(
    "--record",
    metavar="FILE[,payload=none|digest|full]",
    callback=options.parsed(options.record),
    help="Record every request there, for `vhostblk trace` and `vhostblk powercut`.",
)
@options.confidential
@click.option(
    "--control",
    metavar="PATH",
    type=click.Path(readable=False, path_type=Path),
    help="Listen here for `vhostblk ctl`, which changes what is served.  [default: nowhere]",
)
@click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Serve the devices of this file instead; SIGHUP reads it again.",
)
@click.option("--check", is_flag=True, help="With --config: say whether it is right, and exit.")
@options.verbosity
@click.pass_context
def serve(
    context: click.Context,
    *,
    disk: str | None,
    socket_path: Path | None,
    connect: Path | None,
    fd: int | None,
    socket_mode: int,
    socket_owner: options.Owner | None,
    serial: str,
    num_queues: int,
    queue_size: int,
    packed: bool,
    ring_reset: bool,
    read_only: bool,
    cache: str | None,
    lock: str | None,
    block_size: int,
    engine: options.Engine,
    workers: int | None,
    cpus: str,
    poll: str,
    drain_timeout: float | None,
    on_error: options.OnError,
    slow_request: float,
    record: str | None,
    confidential: options.Confidential,
    shared_ranges: str,
    on_violation: options.OnViolation,
    iommu: options.Iommu,
    access_platform: bool,
    control: Path | None,
    config: Path | None,
    check: bool,
    verbose: int,
    quiet: bool,
) -> None:
    """
    Serve DISK to one front-end at a time, until SIGTERM.

    DISK is a path, or a scheme, a colon and what it wants, with options behind
    commas (a comma in a name is written twice):

    \b
      disk.img, /dev/sdb       a raw image file or a block device
      file:PATH,cache=none     the same, with options
      memory:4G                memory, allocated as it is written
      null:4G                  nothing: reads give zeroes, writes are forgotten
      qcow2:PATH               a qcow2 image, by qemu-nbd
      nbd:unix:PATH, nbd:HOST  an export of an NBD server
      python:module:Class,...  a Python class, with its arguments
      LAYER:key=value,...|DISK any of these with a layer in front of it; several stack

    Which layers there are: docs/reference/layers.md.

    \b
    Examples:
      vhostblk serve --socket-path /run/vm0.sock disk.img
      vhostblk serve --socket-path /run/vm0.sock --num-queues 4 --cache none disk.img
      vhostblk serve --socket-path /run/vm0.sock --serial scratch memory:4G
      vhostblk serve --socket-path /run/vm0.sock 'pause|zeroes:unmap=on|disk.img'
      vhostblk serve --connect /run/qemu-vm0.sock disk.img
      vhostblk serve --config /etc/vhostblk.toml
    """  # noqa: D301 - \b keeps click from joining lines
    if config is not None:
        _serve_config(context, config, check=check, verbosity=-1 if quiet else verbose)
        return
    if disk is None or check:
        missing = "DISK, or --config FILE" if disk is None else "--config FILE with --check"
        raise click.UsageError(f"Give {missing}.", context)
    options.one_place(socket_path=socket_path, connect=connect, fd=fd)
    report.start_logging(-1 if quiet else verbose)
    vhostblk.serve(
        str(beside(parse(disk), cache=cache, read_only=read_only, lock=lock, record=record)),
        socket_path,
        fd=fd,
        connect=connect,
        engine=engine,
        workers=workers,
        cpus=cpus,
        poll=poll,
        serial=serial,
        num_queues=num_queues,
        queue_size=queue_size,
        packed=packed,
        ring_reset=ring_reset,
        read_only=read_only,
        block_size=block_size,
        drain_seconds=drain_timeout,
        on_error=on_error,
        slow_request=slow_request,
        confidential=confidential,
        shared_ranges=shared_ranges,
        on_violation=on_violation,
        iommu=iommu,
        access_platform=access_platform,
        socket_mode=socket_mode,
        socket_owner=socket_owner or (None, None),
        control=control,
        ready=report.ready,
    )


def _serve_config(context: click.Context, path: Path, *, check: bool, verbosity: int) -> None:
    """Serve what a file says; nothing that it says may be said beside it."""
    # Here, as every command imports this file.
    from vhostblk.server.config_file import read_config  # noqa: PLC0415
    from vhostblk.server.serve import serve_config  # noqa: PLC0415

    beside_it = [
        name
        for name in context.params
        if name not in {"config", "check", "verbose", "quiet"}
        and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if beside_it:
        raise click.UsageError(
            f"With --config the file says it all: write {beside_it[0]} = ... there.", context
        )
    report.start_logging(verbosity)
    config = read_config(path)
    if check:
        for one in config.devices:
            make(one.source)
        count = len(config.devices)
        click.echo(f"{path}: {count} device{'' if count == 1 else 's'}, nothing wrong")
        return
    serve_config(config, ready=report.ready)
