"""
How a disk goes on in another process, where this one is replaced while a guest runs.

A disk that is all behind descriptors says so by two methods more, and is open in both processes for
a moment, though used by one at a time:

* ``share() -> Sequence[int]``: its descriptors, which stay its own;
* ``adopt(fds)``: called before `Disk.open`: take the same ones over.

Any other disk is closed here and opened there.  What it holds in memory meanwhile it gives and
gets by two methods, either of which may be ``async``; without them it is not carried over at all,
as nobody else knows whether anything would be lost:

* ``save() -> bytes``: called after the last request and `Disk.flush`, before `Disk.close`; a disk
  with nothing to save returns ``b""``;
* ``restore(data)``: called before `Disk.open`: in the other process, or in this one if that could
  not take over.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import cast

from vhostblk.errors import VhostBlkError


def shared(disk: object) -> tuple[int, ...] | None:
    """
    Return the descriptors of a disk that shares them; None: it has to be closed first.

    Raises:
        VhostBlkError: It cannot be carried over at all; says what to do.
    """
    if _has(disk, "share", "adopt"):
        share = cast("Callable[[], Sequence[int]]", disk.share)  # type: ignore[attr-defined]
        return tuple(share())
    if not _has(disk, "save", "restore"):
        raise VhostBlkError(
            f"a {type(disk).__name__} disk would lose what it holds in memory: {_remedy(disk)}"
        )
    return None


def _remedy(disk: object) -> str:
    if type(disk).__module__ == "vhostblk.disk.memory":
        return "serve memory:SIZE,memfd=on to carry it over, or stop and start the server"
    return 'give it methods save(), which may return b"", and restore(data)'


def _has(disk: object, *names: str) -> bool:
    return all(callable(getattr(disk, name, None)) for name in names)


async def adopt(disk: object, *, fds: Sequence[int]) -> None:
    """
    Have a disk take descriptors over, before it is open.

    Raises:
        VhostBlkError: It shares none here.
    """
    await _call(disk, "adopt", fds)


async def save(disk: object) -> bytes:
    """Return what a disk saves."""
    saved = await _call(disk, "save")
    if not isinstance(saved, bytes | bytearray | memoryview):
        raise VhostBlkError(f"{type(disk).__name__}.save() returns {saved!r}, not bytes")
    return bytes(saved)


async def restore(disk: object, *, data: bytes) -> None:
    """Give a disk what it has saved, before it is open."""
    await _call(disk, "restore", data)


async def _call(disk: object, name: str, *arguments: object) -> object:
    method = getattr(disk, name, None)
    if not callable(method):
        raise VhostBlkError(f"a {type(disk).__name__} disk has no {name}(): it was another before")
    result: object = method(*arguments)
    return await result if inspect.isawaitable(result) else result
