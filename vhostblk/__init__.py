"""A vhost-user-blk back-end: virtio block devices for virtual machines, from a process."""

import os
from collections.abc import Callable
from typing import Literal

from vhostblk.disk.api import Disk, DiskInfo, Extent
from vhostblk.errors import VhostBlkError

__all__ = ["Disk", "DiskInfo", "Extent", "VhostBlkError", "serve"]


def serve(  # noqa: PLR0913 - one for each thing a user may want to say
    disk: object,
    socket_path: str | os.PathLike[str] | None = None,
    *,
    fd: int | None = None,
    connect: str | os.PathLike[str] | None = None,
    engine: Literal["auto", "native", "reference"] = "auto",
    workers: int | None = None,
    cpus: str = "",
    poll: str = "auto",
    serial: str = "",
    num_queues: int = 1,
    queue_size: int = 1024,
    packed: bool = True,
    ring_reset: bool = False,
    read_only: bool = False,
    block_size: int = 0,
    drain_seconds: float | None = None,
    on_error: Literal["report", "stop", "enospc"] = "report",
    slow_request: float = 10.0,
    record: str | None = None,
    confidential: Literal["off", "auto", "require"] = "auto",
    shared_ranges: str = "",
    on_violation: Literal["warn", "fail", "break"] = "fail",
    iommu: Literal["off", "auto", "on"] = "auto",
    access_platform: bool = True,
    socket_mode: int = 0o600,
    socket_owner: tuple[int | None, int | None] = (None, None),
    control: str | os.PathLike[str] | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """
    Serve a disk to virtual machines until SIGTERM or SIGINT; then drain, flush and return.

    Args:
        disk: An object that meets the `Disk` contract, or a disk named as text; opened and
            closed here.
        socket_path: Where to listen.
        fd: Instead: a socket that somebody opened, listening or connected; taken over.
        connect: Instead: where a front-end listens; connected to, now and whenever it is back.
            Without any of the three: the socket that systemd has passed.
        engine: ``auto``, ``native`` (the compiled core) or ``reference`` (Python).
        workers: Threads that serve queues at most; None: one for each CPU.
        cpus: CPUs of these threads, one each in this order, like ``0-3,8``; empty: any.
        poll: How long a thread looks on for the next request before it sleeps: ``auto``,
            ``always``, ``0``, or microseconds, ``50us``.
        serial: What the guest sees as the disk's serial, 20 bytes at most.
        num_queues: How many queues a guest may use, 1 to 64.
        queue_size: Descriptors a queue may have, a power of two up to 1024.
        packed: Offer packed rings, which a guest uses if its front-end lets it.
        ring_reset: Offer VIRTIO_F_RING_RESET.  Not to QEMU, which does not tell of such resets.
        read_only: Refuse writes, whatever the disk can.
        block_size: Bytes every request is a multiple of; 0: the disk's own.
        drain_seconds: How long requests in flight may take when the guest stops or leaves.
        on_error: A request that the disk fails is reported to the guest (``report``), held until
            `vhostblk ctl resume` (``stop``), or held for want of space only (``enospc``).
        slow_request: Seconds from which on a request that is under way has a line in the log; 0:
            none has.
        record: Where every request is recorded, ``FILE[,payload=none|digest|full]``; None: nowhere.
        confidential: ``off``, ``auto`` or ``require``: serve requests in shared memory only.
        shared_ranges: For ``require``: what the guest shares, as the command line takes it.
        on_violation: For ``require``: a request elsewhere gets a warning (``warn``), fails
            (``fail``) or breaks its queue (``break``).
        iommu: Whether addresses go through the front-end's IOMMU: ``off``, ``auto`` or ``on``.
        access_platform: Offer VIRTIO_F_ACCESS_PLATFORM, without which no confidential guest starts.
        socket_mode: Permission bits of the socket.
        socket_owner: User and group of the socket, as numbers; None: whoever runs this.
        control: Where to listen for `vhostblk ctl`; None: nowhere.
        ready: Called, in the thread that serves, once a front-end can be served.

    Raises:
        VhostBlkError: Something cannot be had; the text says what to do.
    """
    # Here, as most who import the package (the fake guest's users) never serve.
    from vhostblk.disk.make import prepare  # noqa: PLC0415
    from vhostblk.engine.api import OnError  # noqa: PLC0415
    from vhostblk.engine.cpus import parse_cpus  # noqa: PLC0415
    from vhostblk.engine.poll import Poll  # noqa: PLC0415
    from vhostblk.memory.ranges import OnViolation  # noqa: PLC0415
    from vhostblk.server.activation import passed_sockets  # noqa: PLC0415
    from vhostblk.server.listener import SocketOptions  # noqa: PLC0415
    from vhostblk.server.policy import (  # noqa: PLC0415
        Confidential,
        IommuMode,
        chosen,
        parse_shared_ranges,
    )
    from vhostblk.server.promise import DRAIN_SECONDS, DeviceOptions  # noqa: PLC0415
    from vhostblk.server.serve import serve_disk  # noqa: PLC0415
    from vhostblk.server.takeover import expected  # noqa: PLC0415
    from vhostblk.server.where import where  # noqa: PLC0415

    uid, gid = socket_owner
    passed = passed_sockets(os.environ, os.getpid())
    place = where(socket_path, connect, fd, passed, taking_over=expected(os.environ))
    made, source = prepare(disk, record)
    serve_disk(
        made,
        place,
        engine=engine,
        workers=workers,
        cpus=parse_cpus(cpus, workers=workers),
        poll=Poll.parse(poll),
        socket=SocketOptions(mode=socket_mode, uid=uid, gid=gid),
        options=DeviceOptions(
            name=place.name,
            serial=serial,
            num_queues=num_queues,
            queue_size=queue_size,
            packed=packed,
            ring_reset=ring_reset,
            read_only=read_only,
            block_size=block_size,
            on_error=chosen(OnError, "on_error", on_error),
            slow_request=slow_request,
            drain_seconds=DRAIN_SECONDS if drain_seconds is None else drain_seconds,
            confidential=chosen(Confidential, "confidential", confidential),
            shared_ranges=parse_shared_ranges(shared_ranges),
            on_violation=chosen(OnViolation, "on_violation", on_violation),
            iommu=chosen(IommuMode, "iommu", iommu),
            access_platform=access_platform,
        ),
        control=control,
        source=source,
        ready=ready,
    )
