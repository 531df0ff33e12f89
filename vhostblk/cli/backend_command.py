"""
The options of ``vhostblk-backend``.

Spec: vhost-user, "Backend program conventions".
"""

from pathlib import Path

import click

import vhostblk
from vhostblk.cli import options, report
from vhostblk.disk.grammar import DiskSpec
from vhostblk.disk.make import beside


@click.command("vhostblk-backend")
@options.socket
@click.option(
    "--blk-file", required=True, metavar="PATH", help="The image file or block device to serve."
)
@click.option("--read-only", is_flag=True, help="Refuse writes of every kind.")
@options.lock
@click.option(
    "--print-capabilities",
    is_flag=True,
    expose_value=False,  # `backend.main` has answered already
    help="Print what this program can as JSON and exit, whatever else is said.",
)
@options.confidential
@options.verbosity
def backend(
    *,
    socket_path: Path | None,
    fd: int | None,
    blk_file: str,
    read_only: bool,
    lock: str | None,
    confidential: options.Confidential,
    shared_ranges: str,
    on_violation: options.OnViolation,
    iommu: options.Iommu,
    access_platform: bool,
    verbose: int,
    quiet: bool,
) -> None:
    """
    Serve a file over vhost-user-blk, by QEMU's conventions for back-end programs.

    It stays in the foreground and logs to stderr. SIGTERM ends it with status 0
    once requests are finished and the disk is flushed.

    \b
    Examples:
      vhostblk-backend --socket-path=/run/vm0.sock --blk-file=disk.img
      vhostblk-backend --fd=3 --blk-file=disk.img --read-only
    """  # noqa: D301 - \b keeps click from joining lines
    options.one_place(socket_path=socket_path, fd=fd)
    report.start_logging(-1 if quiet else verbose)
    disk = beside(DiskSpec("file", blk_file), cache=None, read_only=read_only, lock=lock)
    vhostblk.serve(
        str(disk),
        socket_path,
        fd=fd,
        read_only=read_only,
        confidential=confidential,
        shared_ranges=shared_ranges,
        on_violation=on_violation,
        iommu=iommu,
        access_platform=access_platform,
        ready=report.ready,
    )
