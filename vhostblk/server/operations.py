"""
What an operator can do while devices are served: the methods of the control socket.

Each public ``async`` method is one of them; docs/reference/control.md describes it.  What changes a
device does so under its service's lock.
"""

import asyncio
import os
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

from vhostblk.disk.carry import keeps
from vhostblk.disk.grammar import parse
from vhostblk.disk.layer import Layer
from vhostblk.disk.layers import stack
from vhostblk.disk.make import beside, make
from vhostblk.disk.python import load_again
from vhostblk.errors import VhostBlkError
from vhostblk.server import change
from vhostblk.server.jsonrpc import Json, Method, NoDevice, method
from vhostblk.server.layers import Order, as_text
from vhostblk.server.server import Server
from vhostblk.server.service import Service
from vhostblk.server.settings import add_device, read_settings
from vhostblk.server.status import Status, look
from vhostblk.server.upgrade import Upgrade, command_of, same_command
from vhostblk.spec.virtio_blk import SECTOR_SIZE
from vhostblk.version import version


class Operations:
    """
    The methods, for one server.

    Args:
        server: Whose devices.
        upgrade: Replaces this process.
        stop: Ends it.
    """

    def __init__(self, server: Server, upgrade: Upgrade, stop: Callable[[], None]) -> None:
        self._server = server
        self._upgrade = upgrade
        self._stop = stop

    def methods(self) -> Mapping[str, Method]:
        """Return all of them by name."""
        asking = (self.version, self.list_devices, self.status, self.layers)
        changing = (
            self.add,
            self.resume,
            self.layer,
            self.resize,
            self.replace,
            self.reload,
            self.move,
            self.remove,
            self.upgrade,
            self.shutdown,
        )
        rows = [method(one, name=_NAMES.get(one.__name__, "")) for one in asking]
        rows += [method(one, name=_NAMES.get(one.__name__, ""), changes=True) for one in changing]
        return {row.name: row for row in rows}

    # ---- asking ---------------------------------------------------------------------------

    async def version(self) -> Json:
        """Say who answers."""
        return {"version": version(), "engine": self._server.engine_name, "pid": os.getpid()}

    async def list_devices(self) -> Json:
        """List what is served."""
        return [_row(service) for service in self._server.services.values()]

    async def status(self, device: str | None = None) -> Json:
        """Return the status document of a device, or of all of them by name."""
        if device is not None:
            return _json(await look(self._find(device).device))
        services = tuple(self._server.services.values())
        documents = await asyncio.gather(*(look(service.device) for service in services))
        return {one["name"]: _json(one) for one in documents}

    async def layers(self, device: str) -> Json:
        """Return what the layers of a device are set to, the outermost first."""
        rows = await self._find(device).device.backing.layers.look()
        return cast("Json", list(rows))

    # ---- changing -------------------------------------------------------------------------

    async def add(self, disk: str, **settings: Json) -> Json:
        """Serve one more device; *settings* are the keys of a `[[device]]` table."""
        chosen = read_settings({"disk": disk, **settings})
        await add_device(self._server, chosen)
        service = self._find(chosen.name)
        service.added = chosen.table  # nothing else knows, when another process takes over
        return _row(service)

    async def resume(self, device: str) -> Json:
        """Have the queues of a device that an error has stopped try again."""
        async with self._changing(device) as service:
            return {"queues": service.device.resume_stalled()}

    async def layer(
        self,
        device: str,
        layer: str,
        set: dict[str, Json] | None = None,  # noqa: A002 - JSON's
        do: str = "",
    ) -> Json:
        """
        Set a layer of a device otherwise, or have it do something, or ask for it.

        Not under the service's lock: whoever waits there for requests may wait for this.
        """
        try:
            order = Order(layer, as_text(set or {}), do)
            done = await self._find(device).device.backing.order(order)
        except VhostBlkError as error:
            raise VhostBlkError(f"{device}: {error}") from error
        return {**cast("Mapping[str, Json]", done.row), "result": done.result}

    async def resize(self, device: str, size: int | None = None) -> Json:
        """Give a device another size in bytes, or look at that of its disk again."""
        async with self._changing(device) as service:
            return {"size": await change.resize(service.device, size)}

    async def replace(self, device: str, disk: str, layer: str = "", do: str = "") -> Json:
        """Serve another disk behind the same device, once a layer of the old one has done that."""
        if bool(layer) != bool(do):
            raise VhostBlkError("layer and do go together: say which layer is to do what")
        last = Order(layer, {}, do) if do else None
        async with self._changing(device) as service:
            served = service.device
            source = beside(parse(disk), cache=None, read_only=served.options.read_only)
            # In a thread: making one may import somebody's module.
            made = await asyncio.to_thread(make, source)
            await change.replace(served, made, source, last=last)
            return _row(service)

    async def reload(self, device: str) -> Json:
        """Serve a Python disk with its code as it is now."""
        async with self._changing(device) as service:
            served = service.device
            source = served.backing.source
            if source is None or source.scheme != "python":
                raise VhostBlkError(f"{served.backing.name} is no python: disk: nothing to load")
            _check_inherited(served.backing.stack.layers)
            made = await asyncio.to_thread(load_again, source.body, source.options)
            source = served.backing.source or source  # a layer may be set otherwise by now
            await change.replace(served, stack(source.layers, made), source, inherit=True)
            return _row(service)

    async def move(self, device: str, queue: int, worker: int | None = None) -> Json:
        """Have another worker of the data plane serve a queue."""
        async with self._changing(device) as service:
            return {"worker": await change.move(service.device, queue, worker)}

    async def remove(self, device: str, force: bool = False) -> Json:  # noqa: FBT001, FBT002 - JSON's
        """Serve a device no longer."""
        async with self._changing(device) as service:
            if service.device.attached is not None and not force:
                raise VhostBlkError(
                    "a front-end is connected: unplug the disk from its guest first, "
                    "or say force to hang up on it"
                )
            self._server.forget(device)
        await service.end()
        return None

    async def shutdown(self) -> Json:
        """End, as SIGTERM does."""
        self._stop()
        return None

    async def upgrade(self, program: str | None = None) -> Json:
        """Have a new process take over: *program* with our arguments, or as we were started."""
        command = same_command() if program is None else command_of(shlex.split(program))
        successor = await self._upgrade.run(command)
        return {"pid": successor.pid, "paused_seconds": successor.paused_seconds}

    @asynccontextmanager
    async def _changing(self, name: str) -> AsyncIterator[Service]:
        """Let nobody else change a device; errors name it."""
        service = self._find(name)
        async with service.lock:
            if self._server.services.get(name) is not service:
                raise NoDevice(f"device {name!r} was removed meanwhile")
            try:
                yield service
            except VhostBlkError as error:
                raise VhostBlkError(f"{name}: {error}") from error

    def _find(self, name: str) -> Service:
        service = self._server.services.get(name)
        if service is None:
            known = ", ".join(self._server.services) or "none"
            raise NoDevice(f"no device is called {name!r}; there are {known}")
        return service


def _check_inherited(layers: Sequence[Layer]) -> None:
    """Raise `VhostBlkError` if one of them would lose what it keeps when it is made anew."""
    for layer in layers:
        if keeps(layer) and type(layer).inherit is Layer.inherit:
            raise VhostBlkError(
                f"the layer {layer.name} would lose what it keeps: give it a method inherit, or "
                "serve the disk without it first (vhostblk ctl replace)"
            )


def _json(document: Status) -> Json:
    return cast("Json", document)  # a TypedDict is no Mapping to mypy


_NAMES = {"list_devices": "list"}
"""Methods whose name Python has another use for."""


def _row(service: Service) -> Json:
    device, path = service.device, service.listener.path
    return {
        "name": service.name,
        "disk": device.backing.name,
        "size": device.blk.capacity_sectors * SECTOR_SIZE,
        "read_only": device.blk.read_only,
        "socket_path": None if path is None else str(path),
        "front_end_connected": device.attached is not None,
    }
