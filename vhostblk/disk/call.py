"""
Call any disk as if it had the whole contract.

`Disk` asks for two methods and gives every other one a default; here those defaults are.  A
server wraps what it was given once, `Calls(disk)`, and from then on need not know what the disk
defines itself, whether it is plain or ``async``, or whether its `write` takes ``fua``.

Each method of `Calls` returns what the contract says: ``None`` when it is done, or an awaitable.
So one request costs one plain call where the disk is plain::

    pending = calls.read(offset, views)
    if pending is not None:
        await pending

and `run` does both for who does not count microseconds.
"""

import errno
import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import ParamSpec, Protocol, TypeGuard, cast

from vhostblk.disk import duties
from vhostblk.disk.api import Disk, DiskInfo, Extent, MarkedDisk, SharedDisk
from vhostblk.errors import VhostBlkError

BY_DEVICE: ContextVar[bool] = ContextVar("by_device", default=False)
"""Whether a call is the device's own, at its end or when its disk is exchanged, and no guest's."""

ZERO_CHUNK = 1 << 20
"""Bytes of the largest write of zeroes we make for a disk without `write_zeroes`."""

_ZEROES = memoryview(bytes(ZERO_CHUNK))

Pending = Awaitable[None] | None
"""What a method of the contract returns: None when it is done."""

_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """
    What a disk does by itself; what it lacks has a default or is not offered.

    Args:
        write: False: the disk is read-only.
        flush: False: nothing is volatile, `Calls.flush` does nothing.
        discard: False: not to be offered.
        write_zeroes: False: `Calls.write_zeroes` writes zeroes.
        fua: False: `Calls.write` flushes behind a write that must be stable.
        block_status: False: `Calls.block_status` says that everything is stored.
        resize: False: it keeps its size.
    """

    write: bool
    flush: bool
    discard: bool
    write_zeroes: bool
    fua: bool
    block_status: bool
    resize: bool = False


class _StableWriter(Protocol):
    """A disk whose `write` can make one write stable by itself."""

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool) -> Pending: ...


async def run(method: Callable[_P, Pending], *args: _P.args, **kwargs: _P.kwargs) -> None:
    """
    Call a plain or ``async`` method and return when it is done.

    Args:
        method: Of a disk or of `Calls`.
        *args: Handed to it.
        **kwargs: Handed to it.
    """
    pending = method(*args, **kwargs)
    if _is_pending(pending):
        await pending


def defines(disk: object, name: str) -> bool:
    """
    Say whether a disk has a method of its own.

    Args:
        disk: Any object.
        name: A method of `Disk`; the body that `Disk` itself gives it does not count.
    """
    method = getattr(disk, name, None)
    if not callable(method):
        return False
    return getattr(method, "__func__", method) is not getattr(Disk, name, None)


def methods(disk: object) -> Abilities:
    """Return what a disk's methods say it can, before it is open."""
    return Abilities(
        write=defines(disk, "write"),
        flush=defines(disk, "flush"),
        discard=defines(disk, "discard"),
        write_zeroes=defines(disk, "write_zeroes"),
        fua=defines(disk, "write") and _takes(cast("Disk", disk).write, "fua"),
        block_status=defines(disk, "block_status"),
        resize=defines(disk, "resize"),
    )


def offered(can: Abilities, info: DiskInfo) -> Abilities:
    """
    Narrow what a disk's methods can to what its info lets a device offer.

    Args:
        can: From `methods`.
        info: Of the same disk, once open.

    Returns:
        *can* without what a read-only disk does not do, and without `discard` or `write_zeroes`
        where the longest one is 0 bytes (a class that has the method, a file system that has not).
    """
    writable = can.write and not info.read_only
    return replace(
        can,
        write=writable,
        discard=can.discard and writable and info.max_discard > 0,
        write_zeroes=can.write_zeroes and writable and info.max_write_zeroes > 0,
        fua=can.fua and writable,
    )


def starts_writeback(disk: object) -> bool:
    """
    Return the value a device's write cache switch starts with (virtio-blk ``writeback``).

    A disk says it with a ``writeback`` attribute, as `vhostblk.disk.file.File` does for its
    cache modes; without one it starts True.
    """
    return bool(getattr(disk, "writeback", True))


MAX_PARALLEL = 64
"""Threads of one disk."""


def parallel(disk: object) -> int:
    """
    Return how many plain methods of a disk may run at once.

    Raises:
        VhostBlkError: What it says is no such number.
    """
    said = getattr(disk, "parallel", 1)
    if not isinstance(said, int) or not 1 <= said <= MAX_PARALLEL:
        kind = type(disk).__name__
        raise VhostBlkError(f"{kind}.parallel is {said!r}: write how many, 1 to {MAX_PARALLEL}")
    return said


def locks_while_running(disk: object) -> bool:
    """Tell whether a disk is a `SharedDisk` that is locked only while rings run."""
    return bool(getattr(disk, "lock_while_running", False))


def marked(disk: object) -> MarkedDisk | None:
    """
    Return a disk as a `MarkedDisk`, if it is one.

    Its methods are looked up as they are called.  `isinstance` would look at the class alone from
    Python 3.12 on, and a layer has such methods where the disk below has.
    """
    names = ("mark", "unmark", "marked_by_others")
    has_all = all(callable(getattr(disk, name, None)) for name in names)
    return cast("MarkedDisk", disk) if has_all else None


class Calls:
    """
    The whole contract of any disk.

    Args:
        disk: Any object with ``info`` and ``read``.

    Raises:
        VhostBlkError: It lacks one, or a method cannot be called as the contract says.
    """

    def __init__(self, disk: object) -> None:
        if isinstance(disk, type):
            kind = disk.__name__
            raise VhostBlkError(f"{kind} is a class, not a disk: make one, {kind}(…)")
        for name in ("info", "read"):
            if not defines(disk, name):
                kind = type(disk).__name__
                lack = f"it defines no method {name!r}; a disk needs info, read"
                raise VhostBlkError(f"{kind} is not a disk: {lack}")
        duties.check(disk)
        self.disk = cast("Disk", disk)
        self.can = methods(disk)

    def open(self) -> Pending:
        """Get the disk ready; on the thread that will serve it, before everything else."""
        return _pending(self.disk.open()) if defines(self.disk, "open") else None

    def call_off(self) -> None:
        """Have an `open` that waits give up, if the disk can; from any thread."""
        if callable(call_off := getattr(self.disk, "call_off", None)):
            call_off()

    def close(self) -> Pending:
        """Let the disk go; nothing is called afterwards."""
        return _pending(self.disk.close()) if defines(self.disk, "close") else None

    def lock(self) -> Pending:
        """Take a disk that `locks_while_running`; raises what it does."""
        return _pending(cast("SharedDisk", self.disk).lock())

    def unlock(self) -> Pending:
        """Let others have such a disk."""
        return _pending(cast("SharedDisk", self.disk).unlock())

    def info(self) -> DiskInfo:
        """
        Return what the disk is, checked; once it is open.

        Returns:
            Its info, read-only if it cannot write, not volatile if it cannot flush.

        Raises:
            VhostBlkError: The numbers cannot be a disk's.
        """
        info = self.disk.info()
        _check(type(self.disk).__name__, info)
        return replace(
            info,
            read_only=info.read_only or not self.can.write,
            volatile=info.volatile and self.can.flush,
        )

    def abilities(self) -> Abilities:
        """Return what a device may offer for this disk; once it is open."""
        return offered(self.can, self.info())

    def read(self, offset: int, views: Sequence[memoryview]) -> Pending:
        """Fill *views*, writable and in order, with what is stored from byte *offset* on."""
        result: object = self.disk.read(offset, views)
        return None if result is None else _pending(duties.no_data(self.disk, result))

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        """
        Store *views*.

        Args:
            offset: First byte.
            views: What to store, in order.
            fua: Stable when this is done: by the disk's own ``fua`` or by a flush behind it.

        Raises:
            OSError: EROFS: the disk has no `write`.
        """
        if not self.can.write:
            raise OSError(errno.EROFS, "the disk has no write method")
        if self.can.fua:
            return _pending(cast("_StableWriter", self.disk).write(offset, views, fua=fua))
        if not fua or not self.can.flush:
            return _pending(self.disk.write(offset, views))
        return _all(self._write_and_flush(offset, views))

    def _write_and_flush(self, offset: int, views: Sequence[memoryview]) -> Iterator[object]:
        yield self.disk.write(offset, views)
        yield self.disk.flush()

    def flush(self) -> Pending:
        """Make every write that has returned stable; nothing to do without the disk's own."""
        return _pending(self.disk.flush()) if self.can.flush else None

    def discard(self, offset: int, length: int) -> Pending:
        """
        Forget *length* bytes from *offset* on.

        Raises:
            OSError: EOPNOTSUPP: the disk has no `discard`; do not offer it.
        """
        if not self.can.discard:
            raise OSError(errno.EOPNOTSUPP, "the disk has no discard method")
        return _pending(self.disk.discard(offset, length))

    def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = False, fua: bool = False
    ) -> Pending:
        """
        Make a range read as zeroes, by writes of at most `ZERO_CHUNK` if need be.

        Args:
            offset: First byte.
            length: Bytes.
            unmap: A hole is welcome.
            fua: Stable when this is done.
        """
        if self.can.write_zeroes:
            steps = self._own_zeroes(offset, length, unmap=unmap, fua=fua)
        else:
            steps = self._written_zeroes(offset, length, fua=fua)
        return _all(steps)

    def _own_zeroes(self, offset: int, length: int, *, unmap: bool, fua: bool) -> Iterator[object]:
        yield self.disk.write_zeroes(offset, length, unmap=unmap)
        if fua:
            yield self.flush()

    def _written_zeroes(self, offset: int, length: int, *, fua: bool) -> Iterator[object]:
        end = offset + length
        for at in range(offset, end, ZERO_CHUNK):
            yield self.write(at, [_ZEROES[: min(ZERO_CHUNK, end - at)]])
        if fua:
            yield self.flush()

    def resize(self, size: int) -> Pending:
        """
        Become larger or smaller.

        Raises:
            VhostBlkError: The disk has no `resize`.
        """
        if not self.can.resize:
            raise VhostBlkError(
                f"{type(self.disk).__name__} has no method resize: it has the size it has"
            )
        return _pending(self.disk.resize(size))

    def inherit(self, before: object) -> Pending:
        """Take over from an object of older code; nothing to take without the disk's own."""
        if not defines(self.disk, "inherit"):
            return None
        return _pending(self.disk.inherit(cast("Disk", before)))

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what is stored in a range, in order, without gaps."""
        if self.can.block_status:
            return self.disk.block_status(offset, length)
        return iter([Extent(offset, length, hole=False)])


def _is_pending(result: object) -> TypeGuard[Awaitable[None]]:
    return inspect.isawaitable(result)


def _pending(result: object) -> Pending:
    """Return an awaitable as it is; what a plain method returned is no one's business."""
    if result is None:  # first: it is what most return, and the other question is dear
        return None
    return result if _is_pending(result) else None


def _all(steps: Iterator[object]) -> Pending:
    """Take steps in order; from the first that has to be waited for on, in a coroutine."""
    for result in steps:
        if _is_pending(result):
            return _rest(result, steps)
    return None


async def _rest(first: Awaitable[None], steps: Iterator[object]) -> None:
    await first
    for result in steps:
        if _is_pending(result):
            await result


def _takes(method: Callable[..., object], name: str) -> bool:
    """Say whether a parameter of that name can be given by keyword."""
    try:
        parameter = inspect.signature(method).parameters.get(name)
    except (TypeError, ValueError):  # a callable without a Python signature
        return False
    return parameter is not None and parameter.kind in (
        parameter.KEYWORD_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
    )


def _check(kind: str, info: DiskInfo) -> None:
    """Raise `VhostBlkError` unless the numbers can be a disk's."""
    block = info.block_size
    if block < 512 or block & (block - 1):  # noqa: PLR2004 - a sector
        raise VhostBlkError(f"{kind}: block size {block} is not a power of two from 512 on")
    if info.size <= 0:
        raise VhostBlkError(f"{kind}: size {info.size} is not a disk's, which has a block or more")
    if info.size % block:
        raise VhostBlkError(
            f"{kind}: size {info.size} is not a multiple of its {block}-byte blocks"
        )
    for name in ("physical_block_size", "discard_alignment"):
        value = getattr(info, name)
        if value < 0 or value % block:
            raise VhostBlkError(f"{kind}: {name} {value} is not a multiple of {block}")
