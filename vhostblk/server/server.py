"""
Devices that are served together: by one data plane, on one loop.

Each device has its own socket and its own accept loop; what goes wrong with one front-end ends
its connection, and what goes wrong with one disk ends its device, never the others.
"""

import asyncio
import resource
from types import TracebackType
from typing import Self

from vhostblk.disk.grammar import DiskSpec
from vhostblk.engine.api import Engine
from vhostblk.errors import VhostBlkError
from vhostblk.server.device import Device, open_device
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.service import Service
from vhostblk.server.source import Source
from vhostblk.server.status import log_status

OPEN_FILES = 65536
"""Descriptors we ask for: 64 queues have 3 each and 509 regions one, for every device."""


class Server:
    """
    Serves devices until it is closed; an async context manager.

    Args:
        engine: The data plane; owned.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.services: dict[str, Service] = {}
        """What is served, by name."""
        self.full: str | None = None
        """Why no device can come; None: it can."""
        self._coming: set[str] = set()
        self._reports: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
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

    @property
    def engine(self) -> Engine:
        """The data plane, which stays ours."""
        return self._engine

    @property
    def engine_name(self) -> str:
        """``native`` or ``reference``."""
        return self._engine.name

    async def add(
        self,
        disk: object,
        listener: Source,
        options: DeviceOptions,
        source: DiskSpec | None = None,
    ) -> Device:
        """
        Open a disk and serve it.

        Args:
            disk: Any object that meets the `Disk` contract; closed by the server.
            listener: Where its front-ends come from; owned, also when this fails.
            options: What the operator asks.
            source: The disk as it was written, if it was.

        Raises:
            VhostBlkError: The disk cannot be had, or not so.
        """
        try:
            device = await self._open(disk, options, source)
        except BaseException:
            listener.close()
            raise
        service = self.services[options.name] = Service(device, listener)
        service.start()
        self._changed.set()
        device.log.info(
            "%d bytes on %d queue%s, %s engine%s",
            device.blk.capacity_sectors * 512,
            device.blk.num_queues,
            "s" if device.blk.num_queues > 1 else "",
            self._engine.name,
            ", read-only" if device.blk.read_only else "",
        )
        return device

    async def _open(self, disk: object, options: DeviceOptions, source: DiskSpec | None) -> Device:
        self._reserve(options.name)
        try:
            device = await open_device(disk, self._engine, options, source)
        finally:
            self._coming.discard(options.name)
        if self.full is not None:
            await device.close()
            raise VhostBlkError(self.full)
        return device

    def _reserve(self, name: str) -> None:
        if self.full is not None:
            raise VhostBlkError(self.full)
        if name in self.services or name in self._coming:
            raise VhostBlkError(f"a device is called {name!r} already: give this one another name")
        self._coming.add(name)

    def forget(self, name: str) -> Service:
        """Take a device out of what is served; the caller ends it."""
        self._changed.set()
        return self.services.pop(name)

    async def wait(self) -> None:
        """Return when no device can get a front-end any more (``--fd`` with a connection)."""
        while True:
            tasks = [one.task for one in self.services.values() if one.task is not None]
            if tasks and all(task.done() for task in tasks):
                return
            self._changed.clear()
            change = asyncio.ensure_future(self._changed.wait())
            left = {task for task in tasks if not task.done()}
            try:
                await asyncio.wait({change, *left}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()

    def report(self) -> None:
        """Log the status of every device; soon, where its layers are asked first."""
        for service in self.services.values():
            if not service.device.backing.stack.layers:
                log_status(service.device, asked=True)
                continue
            task = asyncio.ensure_future(self._report(service.device))
            self._reports.add(task)
            task.add_done_callback(self._reports.discard)

    async def _report(self, device: Device) -> None:
        await device.backing.layers.look()
        log_status(device, asked=True)

    async def close(self) -> None:
        """
        Stop serving: drain, flush and close every disk, end the data plane.

        Raises:
            VhostBlkError: Completed writes may not be stable.
        """
        services, self.services = self.services, {}
        ends = (service.end() for service in services.values())
        results = await asyncio.gather(*ends, return_exceptions=True)
        await self._engine.close()
        for result in results:
            if isinstance(result, BaseException):
                raise result


def raise_open_files() -> None:
    """Raise the soft limit of open files as far as it is useful and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
