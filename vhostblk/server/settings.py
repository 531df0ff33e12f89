"""
A device as somebody wrote it: one table of keys, in a configuration file or a request.

The keys are the options of ``vhostblk serve``, with ``_`` for ``-``.  Here they are checked, and
become what a device is made of; docs/reference/config-file.md shows all of them.
"""

import asyncio
import grp
import logging
import pwd
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from vhostblk.disk.file import CacheMode, LockWhen
from vhostblk.disk.grammar import DiskSpec, parse
from vhostblk.disk.make import beside, make
from vhostblk.engine.api import OnError
from vhostblk.errors import VhostBlkError
from vhostblk.memory.ranges import OnViolation
from vhostblk.server.activation import Passed
from vhostblk.server.device import Device
from vhostblk.server.listener import SocketOptions
from vhostblk.server.policy import Confidential, IommuMode, parse_shared_ranges
from vhostblk.server.promise import DRAIN_SECONDS, DeviceOptions
from vhostblk.server.server import Server
from vhostblk.server.slow import SLOW_SECONDS
from vhostblk.server.where import Where, where

MAX_MODE = 0o777
PROGRESS_SECONDS = 3.0
"""How often is told whose disks are not open yet."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """
    A key of a device's table.

    Args:
        kind: Its type.
        default: What holds without it; None: nothing does.
        allowed: The only values there are.
    """

    kind: type
    default: object = None
    allowed: tuple[str, ...] = ()


KINDS: Mapping[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}

KEYS: Mapping[str, Key] = {
    "name": Key(str),
    "disk": Key(str),
    "socket_path": Key(str),
    "connect": Key(str),
    "fd": Key(int),
    "systemd": Key(str),
    "socket_mode": Key(str, "600"),
    "socket_owner": Key(str),
    "serial": Key(str, ""),
    "num_queues": Key(int, 1),
    "queue_size": Key(int, 1024),
    "packed": Key(bool, default=True),
    "ring_reset": Key(bool, default=False),
    "read_only": Key(bool, default=False),
    "cache": Key(str, None, tuple(CacheMode)),
    "lock": Key(str, None, tuple(LockWhen)),
    "block_size": Key(int, 0),
    "drain_timeout": Key(float, DRAIN_SECONDS),
    "slow_request": Key(float, SLOW_SECONDS),
    "record": Key(str),
    "on_error": Key(str, "report", tuple(OnError)),
    "confidential": Key(str, "auto", tuple(Confidential)),
    "shared_ranges": Key(str, ""),
    "on_violation": Key(str, "fail", tuple(OnViolation)),
    "iommu": Key(str, "auto", tuple(IommuMode)),
    "access_platform": Key(bool, default=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    A device that can be made.

    Args:
        source: Its disk.
        place: Where its front-ends come from.
        socket: Who may connect there.
        options: What is asked of it.
        table: As it was written.
    """

    source: DiskSpec
    place: Where
    socket: SocketOptions
    options: DeviceOptions
    table: Mapping[str, object]

    @property
    def name(self) -> str:
        """What the device is called."""
        return self.options.name


def read_settings(table: Mapping[str, object]) -> Settings:
    """
    Read a device's table.

    Raises:
        VhostBlkError: A key that there is not, or a value that cannot be; one line that names the
            key and what is allowed.
    """
    said = {key: check(key, value, KEYS) for key, value in table.items()}
    if "disk" not in said:
        raise VhostBlkError("disk is missing: say what is to be served")
    place = _place(said)
    read_only = bool(said.get("read_only"))
    source = beside(
        parse(str(said["disk"])),
        cache=_text(said, "cache"),
        read_only=read_only,
        lock=_text(said, "lock"),
        record=_text(said, "record"),
    )
    uid, gid = _read(said, "socket_owner", parse_owner) or (None, None)
    mode = _read(said, "socket_mode", parse_mode)
    return Settings(
        source=source,
        place=place,
        socket=SocketOptions(mode=0o600 if mode is None else mode, uid=uid, gid=gid),
        options=_options(said, place.name),
        table=dict(table),
    )


def check(key: str, value: object, keys: Mapping[str, Key]) -> object:
    """
    Return the value of a key.

    Raises:
        VhostBlkError: No such key, or not such a value.
    """
    known = keys.get(key)
    if known is None:
        raise VhostBlkError(f"there is no key {key!r}; there are {', '.join(keys)}")
    if known.kind is float and type(value) is int:
        value = float(value)
    if type(value) is not known.kind:
        raise VhostBlkError(f"{key} is {KINDS[known.kind]}, not {value!r}")
    if known.allowed and value not in known.allowed:
        raise VhostBlkError(f"{key} is one of {', '.join(known.allowed)}, not {value!r}")
    return value


def _place(said: Mapping[str, object]) -> Where:
    fd = said.get("fd")
    asked = [key for key in ("socket_path", "connect", "fd", "systemd") if key in said]
    if len(asked) != 1:
        raise VhostBlkError(
            f"give one of socket_path, connect, fd and systemd, not {' and '.join(asked) or 'none'}"
        )
    if (passed := _text(said, "systemd")) is not None:
        return Where(name=passed, systemd=passed)
    return where(
        _text(said, "socket_path"), _text(said, "connect"), fd if isinstance(fd, int) else None, ()
    )


def _options(said: Mapping[str, object], name: str) -> DeviceOptions:
    def of(key: str, kind: Callable[[object], _T]) -> _T:
        return kind(said.get(key, KEYS[key].default))

    name = _text(said, "name") or name
    if not name.isprintable():
        raise VhostBlkError(f"name {name!r} cannot be printed")
    return DeviceOptions(
        name=name,
        serial=of("serial", str),
        num_queues=of("num_queues", _int),
        queue_size=of("queue_size", _int),
        packed=of("packed", bool),
        ring_reset=of("ring_reset", bool),
        read_only=of("read_only", bool),
        block_size=of("block_size", _int),
        drain_seconds=of("drain_timeout", _float),
        slow_request=of("slow_request", _float),
        on_error=of("on_error", lambda text: OnError(str(text))),
        confidential=of("confidential", lambda text: Confidential(str(text))),
        shared_ranges=of("shared_ranges", lambda text: parse_shared_ranges(str(text))),
        on_violation=of("on_violation", lambda text: OnViolation(str(text))),
        iommu=of("iommu", lambda text: IommuMode(str(text))),
        access_platform=of("access_platform", bool),
    )


def _text(said: Mapping[str, object], key: str) -> str | None:
    value = said.get(key)
    return None if value is None else str(value)


def _read(said: Mapping[str, object], key: str, parse: Callable[[str], _T]) -> _T | None:
    text = _text(said, key)
    try:
        return parse(text) if text else None
    except VhostBlkError as error:
        raise VhostBlkError(f"{key}: {error}") from error


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def _float(value: object) -> float:
    return value if isinstance(value, float) else DRAIN_SECONDS


def parse_mode(text: str) -> int:
    """
    Read permission bits in octal, as chmod takes them.

    Raises:
        VhostBlkError: It is not octal, or more than 777.
    """
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", text) or int(text, 8) > MAX_MODE:
        raise VhostBlkError(f"{text!r} is not a mode; give octal digits like 660")
    return int(text, 8)


def parse_owner(text: str) -> tuple[int | None, int | None]:
    """
    Read USER, USER:GROUP or :GROUP, by name or number, as chown takes them.

    Raises:
        VhostBlkError: No such user or group.
    """
    user, _, group = text.partition(":")
    if not user and not group:
        raise VhostBlkError("give USER, USER:GROUP or :GROUP")
    uid = _number(user, lambda name: pwd.getpwnam(name).pw_uid, "user")
    gid = _number(group, lambda name: grp.getgrnam(name).gr_gid, "group")
    return uid, gid


def _number(text: str, look_up: Callable[[str], int], what: str) -> int | None:
    if not text:
        return None
    if text.isdecimal():
        return int(text)
    try:
        return look_up(text)
    except KeyError:
        raise VhostBlkError(f"there is no {what} {text!r} on this machine") from None


async def add_device(server: Server, settings: Settings, passed: Sequence[Passed] = ()) -> Device:
    """
    Serve a device.

    Args:
        server: By which.
        settings: What is said of it.
        passed: Sockets of systemd's.

    Raises:
        VhostBlkError: Its socket or its disk cannot be had; says which device.
    """
    try:
        listener = settings.place.open(settings.socket, settings.name, passed)
        try:
            # In a thread: making one may import somebody's module.
            disk = await asyncio.to_thread(make, settings.source)
        except BaseException:
            listener.close()
            raise
        return await server.add(disk, listener, settings.options, settings.source)
    except VhostBlkError as error:
        raise VhostBlkError(f"{settings.name}: {error}") from error
    except OSError as error:
        raise VhostBlkError(f"{settings.name}: {error.strerror or error}") from error
    except Exception as error:
        _log.exception("the disk of %s raised", settings.name)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise VhostBlkError(
            f"{settings.name}: the disk raised when it was opened: {what}"
        ) from error


async def add_devices(
    server: Server, devices: Sequence[Settings], passed: Sequence[Passed] = ()
) -> None:
    """
    Serve several devices, which open their disks together: each may wait for a dead process's lock.

    Args:
        server: By which; its order is theirs.
        devices: What is said of them.
        passed: Sockets of systemd's.

    Raises:
        VhostBlkError: One of them cannot be had; the others were called off.
    """
    coming = {one.name: asyncio.ensure_future(add_device(server, one, passed)) for one in devices}
    try:
        await _all_open(coming)
    finally:
        for task in coming.values():
            task.cancel()
        if coming:
            await asyncio.wait(coming.values())
        # All of them are asked: asyncio tells of errors that nobody has heard of.
        errors = [task.exception() for task in coming.values() if not task.cancelled()]
    for error in filter(None, errors):
        raise error
    for one in devices:
        server.services[one.name] = server.services.pop(one.name)


async def _all_open(coming: Mapping[str, "asyncio.Task[Device]"]) -> None:
    """Return when all are, or one cannot be; tell now and then who is still waited for."""
    left = set(coming.values())
    while left:
        done, left = await asyncio.wait(
            left, timeout=PROGRESS_SECONDS, return_when=asyncio.FIRST_EXCEPTION
        )
        if any(task.exception() for task in done):
            return
        if left:
            names = ", ".join(name for name, task in coming.items() if task in left)
            opened = len(coming) - len(left)
            _log.info("%d of %d disks are open: waiting for %s", opened, len(coming), names)
