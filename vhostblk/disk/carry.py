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

A layer that keeps something has ``share`` and ``adopt``, which call those below it, or ``save`` and
``restore`` for what it keeps alone, or all four: a stack is carried in the way of the disk behind
it.  What several save is carried as one.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import cast

from vhostblk.disk.layer import Layer, Stack
from vhostblk.errors import VhostBlkError


def shared(stack: Stack) -> tuple[int, ...] | None:
    """
    Return the descriptors of a disk that shares them; None: it has to be closed first.

    Args:
        stack: The disk, with the layers in front of it.

    Raises:
        VhostBlkError: It cannot be carried over at all; says what to do.
    """
    disk, own = stack.disk, type(stack.disk).__name__
    if _has(disk, "share", "adopt"):
        _refuse(stack.layers, "save", other="share", because=f"a {own} disk is handed over open")
        share = cast("Callable[[], Sequence[int]]", stack.outermost.share)  # type: ignore[attr-defined]
        return tuple(share())
    if not _has(disk, "save", "restore"):
        raise VhostBlkError(f"a {own} disk would lose what it holds in memory: {_remedy(disk)}")
    _refuse(stack.layers, "share", other="save", because=f"a {own} disk is closed and opened anew")
    return None


def _refuse(layers: Sequence[Layer], way: str, *, other: str, because: str) -> None:
    """Raise `VhostBlkError` if a layer can be carried in one way only, and not in the other."""
    for layer in layers:
        if hasattr(type(layer), way) and not hasattr(type(layer), other):
            raise VhostBlkError(
                f"a new process would not have what the layer {layer.name} keeps, as {because}: "
                "stop and start the server, or take the layer away first (vhostblk ctl replace)"
            )


def keeps(layer: Layer) -> bool:
    """Tell whether a layer itself, not the disk below it, has something to save."""
    return hasattr(type(layer), "save")


def _remedy(disk: object) -> str:
    if type(disk).__module__ == "vhostblk.disk.memory":
        return "serve memory:SIZE,memfd=on to carry it over, or stop and start the server"
    return 'give it methods save(), which may return b"", and restore(data)'


def _has(disk: object, *names: str) -> bool:
    return all(callable(getattr(disk, name, None)) for name in names)


async def adopt(stack: Stack, *, fds: Sequence[int]) -> None:
    """
    Have a disk take descriptors over, before it is open.

    Raises:
        VhostBlkError: It shares none here.
    """
    await _call(stack.outermost, "adopt", fds)


async def save(stack: Stack) -> bytes:
    """Return what a disk saves; with layers that do, a line of lengths, and so many bytes each."""
    parts = [await _saved(one) for one in _savers(stack)]
    if len(parts) == 1:
        return parts[0]
    lengths = json.dumps([len(part) for part in parts])
    return b"\n".join([lengths.encode(), b"".join(parts)])


async def _saved(one: object) -> bytes:
    saved = await _call(one, "save")
    if not isinstance(saved, bytes | bytearray | memoryview):
        raise VhostBlkError(f"{type(one).__name__}.save() returns {saved!r}, not bytes")
    return bytes(saved)


async def restore(stack: Stack, *, data: bytes) -> None:
    """Give a disk, and its layers, what the same ones have saved, before they are open."""
    savers = list(_savers(stack))
    if len(savers) == 1:
        await _call(savers[0], "restore", data)
        return
    line, _, rest = data.partition(b"\n")
    ends = list(accumulate(json.loads(line), initial=0))
    for one, (start, end) in zip(savers, pairwise(ends), strict=True):
        await _call(one, "restore", rest[start:end])


def _savers(stack: Stack) -> Iterator[object]:
    yield from filter(keeps, stack.layers)
    yield stack.disk


async def _call(disk: object, name: str, *arguments: object) -> object:
    method = getattr(disk, name, None)
    if not callable(method):
        raise VhostBlkError(f"a {type(disk).__name__} disk has no {name}(): it was another before")
    result: object = method(*arguments)
    return await result if inspect.isawaitable(result) else result
