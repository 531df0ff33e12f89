"""
Reading the configuration file again while devices are served (SIGHUP).

Devices come and go, sizes change; what only a new start can change is said, and left as it is.
Whatever goes wrong with one device leaves the others alone.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping

from vhostblk.disk.grammar import parse, parse_size
from vhostblk.errors import VhostBlkError
from vhostblk.server import change
from vhostblk.server.config_file import Config, read_config
from vhostblk.server.control import CLOSE_SECONDS
from vhostblk.server.server import Server
from vhostblk.server.settings import Settings, add_device

_log = logging.getLogger(__name__)
_SIZED = ("memory", "null")
"""Schemes whose body is a size."""


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
            size = _new_size(before, settings)
            await change.resize(service.device, size)
        if size is not None:
            self._known[settings.name] = settings
        left = _differ(before.table, settings.table) - ({"disk"} if size is not None else set())
        if left:
            _log.warning(
                "%s: %s changed in the file: that takes a new start%s",
                settings.name,
                ", ".join(sorted(left)),
                ", or `vhostblk ctl replace` for the disk" if "disk" in left else "",
            )


def _differ(old: Mapping[str, object], new: Mapping[str, object]) -> set[str]:
    return {key for key in {*old, *new} if old.get(key) != new.get(key)}


def _new_size(old: Settings, new: Settings) -> int | None:
    """Return the size a disk should have, where that is all that has changed of it."""
    before, after = parse(str(old.table["disk"])), parse(str(new.table["disk"]))
    same = before.scheme == after.scheme and before.options == after.options
    if not same or after.scheme not in _SIZED or before.body == after.body:
        return None
    return parse_size(after.body)
