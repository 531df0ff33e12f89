"""
Reading the configuration file again while devices are served (SIGHUP).

Devices come and go, sizes change; what only a new start can change is said, and left as it is.
Whatever goes wrong with one device leaves the others alone.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass

from vhostblk.disk.grammar import parse, parse_size
from vhostblk.errors import VhostBlkError
from vhostblk.server import change
from vhostblk.server.config_file import Config, read_config
from vhostblk.server.control import CLOSE_SECONDS
from vhostblk.server.device import Device
from vhostblk.server.layers import Order, names
from vhostblk.server.server import Server
from vhostblk.server.settings import Settings, add_device

_log = logging.getLogger(__name__)
_SIZED = ("memory", "null")
"""Schemes whose body is a size."""


@dataclass(frozen=True, slots=True)
class _DiskChange:
    """
    What has changed of a disk, where a guest need not notice.

    Args:
        size: Bytes it should have; None: as many as before.
        layers: Which layers should be set otherwise, and to what.
    """

    size: int | None
    layers: Sequence[tuple[int, Mapping[str, str]]]


class Rereader:
    """
    Follows a configuration file.

    Args:
        server: What is served.
        config: As it was read when that was begun.
    """

    def __init__(self, server: Server, config: Config) -> None:
        self._server = server
        self._config = config
        self._known = {one.name: one for one in config.devices}
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def ask(self) -> None:
        """Read it again, soon; not behind `close`."""
        if self._closed:
            return
        task = asyncio.ensure_future(self.reread())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Heed the file no more; what is under way is done first, as a disk may be in its hands."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)

    async def reread(self) -> None:
        """Read it again, and follow what it says now."""
        path = self._config.path
        async with self._lock:
            if self._closed:
                return
            try:
                config = read_config(path)
            except VhostBlkError as error:
                _log.error("%s; nothing is changed", error)
                return
            if config.shared != self._config.shared:
                _log.warning(
                    "%s: control, engine, workers, cpus and poll change with a new start only", path
                )
            wanted = {one.name: one for one in config.devices}
            for name in [name for name in self._known if name not in wanted]:
                await self._carefully(name, self._remove(name))
            for name, settings in wanted.items():
                if name not in self._known:
                    await self._carefully(name, self._add(settings))
                elif name in self._server.services:
                    await self._carefully(name, self._change(settings))
            _log.info("%s was read again", path)

    async def _carefully(self, name: str, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except VhostBlkError as error:
            text = str(error)
            _log.error("%s", text if text.startswith(f"{name}: ") else f"{name}: {text}")

    async def _add(self, settings: Settings) -> None:
        await add_device(self._server, settings)
        self._known[settings.name] = settings

    async def _remove(self, name: str) -> None:
        service = self._server.services.get(name)
        if service is None:  # an operator did
            del self._known[name]
            return
        async with service.lock:
            if self._server.services.get(name) is not service:
                return  # an operator did, or another process serves it
            if service.device.attached is not None:
                raise VhostBlkError(
                    "is not in the file any more, and a front-end is connected: it stays until "
                    "`vhostblk ctl remove --force`, or the next SIGHUP after that has left"
                )
            del self._known[name]
            self._server.forget(name)
        await service.end()

    async def _change(self, settings: Settings) -> None:
        before = self._known[settings.name]
        service = self._server.services[settings.name]
        async with service.lock:
            if self._server.services.get(settings.name) is not service:
                return
            new = _disk_change(before, settings)
            if new is not None and not await _can_be_had(service.device, new):
                new = None
            await change.resize(service.device, None if new is None else new.size)
            if new is not None:
                for index, values in new.layers:
                    await _set_layer(service.device, index, values)
        if new is not None:
            self._known[settings.name] = settings
        left = _differ(before.table, settings.table) - (set() if new is None else {"disk"})
        if left:
            _log.warning(
                "%s: %s changed in the file: that takes a new start%s",
                settings.name,
                ", ".join(sorted(left)),
                ", or `vhostblk ctl replace` for the disk" if "disk" in left else "",
            )


def _differ(old: Mapping[str, object], new: Mapping[str, object]) -> set[str]:
    return {key for key in {*old, *new} if old.get(key) != new.get(key)}


def _disk_change(old: Settings, new: Settings) -> _DiskChange | None:
    """Return what has changed of a disk that stays the same one; None: nothing, or all."""
    before, after = parse(str(old.table["disk"])), parse(str(new.table["disk"]))
    if before == after:
        return None
    same = before.scheme == after.scheme and before.options == after.options
    if not same or len(before.layers) != len(after.layers):
        return None
    if before.body != after.body and after.scheme not in _SIZED:
        return None
    changed = []
    for index, (was, now) in enumerate(zip(before.layers, after.layers, strict=True)):
        if was.name != now.name or was.options.keys() - now.options.keys():
            return None  # what an option is without being written is not known here
        if values := dict(now.options.items() - was.options.items()):
            changed.append((index, values))
    size = None if before.body == after.body else parse_size(after.body)
    return _DiskChange(size, changed)


async def _can_be_had(device: Device, new: _DiskChange) -> bool:
    """Tell whether the disk that is served is the one that was written, and as large."""
    layers = device.backing.stack.layers
    if any(index >= len(layers) for index, _ in new.layers):
        return False
    return new.size is None or not layers or await device.backing.keeps_size()


async def _set_layer(device: Device, index: int, values: Mapping[str, str]) -> None:
    name = names(device.backing.stack.layers)[index]
    try:
        await device.backing.order(Order(name, values))
    except VhostBlkError as error:
        raise VhostBlkError(
            f"disk changed in the file: that takes a new start, or `vhostblk ctl replace`: {error}"
        ) from error
