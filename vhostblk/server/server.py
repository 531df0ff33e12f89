"""
Devices that are served together: by one data plane, on one loop.

Each device has its own socket and its own accept loop; what goes wrong with one front-end ends
its connection, and what goes wrong with one disk ends its device, never the others.
"""

import asyncio
import resource
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vhostblk.engine.api import Engine
from vhostblk.server.attachment import Attachment
from vhostblk.server.device import Device, open_device
from vhostblk.server.listener import Listener
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.session import Session
from vhostblk.server.status import log_status
from vhostblk.server.transport import Transport

OPEN_FILES = 65536
"""Descriptors we ask for: 64 queues have 3 each and 509 regions one, for every device."""
RETRY_SECONDS = 1.0
"""How long to wait with a connection that no descriptor is left for."""


@dataclass(slots=True)
class _Service:
    """
    A device being served.

    Args:
        device: What.
        listener: Where its front-ends come from.
        session: The one that is connected.
        task: The accept loop.
    """

    device: Device
    listener: Listener
    session: Session | None = None
    task: asyncio.Task[None] | None = None


class Server:
    """
    Serves devices until it is closed; an async context manager.

    Args:
        engine: The data plane; owned.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._services: list[_Service] = []
        raise_open_files()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def add(self, disk: object, listener: Listener, options: DeviceOptions) -> Device:
        """
        Open a disk and serve it.

        Args:
            disk: Any object that meets the `Disk` contract; closed by the server.
            listener: Where its front-ends come from; owned, also when this fails.
            options: What the operator asks.

        Raises:
            VhostBlkError: The disk cannot be had, or not so.
        """
        try:
            device = await open_device(disk, self._engine, options)
        except BaseException:
            listener.close()
            raise
        service = _Service(device, listener)
        service.task = asyncio.create_task(_serve(service), name=f"serve {options.name}")
        self._services.append(service)
        device.log.info(
            "%d bytes on %d queue%s, %s engine%s",
            device.blk.capacity_sectors * 512,
            device.blk.num_queues,
            "s" if device.blk.num_queues > 1 else "",
            self._engine.name,
            ", read-only" if device.blk.read_only else "",
        )
        return device

    async def wait(self) -> None:
        """Return when no device can get a front-end any more (``--fd`` with a connection)."""
        tasks = [service.task for service in self._services if service.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def report(self) -> None:
        """Log the status of every device."""
        for service in self._services:
            log_status(service.device, asked=True)

    async def close(self) -> None:
        """
        Stop serving: drain, flush and close every disk, end the data plane.

        Raises:
            VhostBlkError: Completed writes may not be stable.
        """
        services, self._services = self._services, []
        results = await asyncio.gather(*map(_end, services), return_exceptions=True)
        await self._engine.close()
        for result in results:
            if isinstance(result, BaseException):
                raise result


async def _serve(service: _Service) -> None:
    """Serve one front-end after the other."""
    device = service.device
    while True:
        try:
            sock = await service.listener.accept()
        except OSError as error:
            device.log.warning("a connection cannot be accepted: %s", error.strerror)
            await asyncio.sleep(RETRY_SECONDS)
            continue
        if sock is None:
            return
        service.session = Session(Transport(sock), Attachment(device), device.log)
        try:
            await service.session.run()
        except Exception:
            device.log.exception("a bug of ours, at the end of a connection")
        service.session = None


async def _end(service: _Service) -> None:
    service.listener.close()
    if service.session is not None:
        service.session.stop()
    if service.task is not None:
        with suppress(asyncio.CancelledError):
            await service.task
    await service.device.close()


def raise_open_files() -> None:
    """Raise the soft limit of open files as far as it is useful and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
