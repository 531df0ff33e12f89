"""
What a disk is.

A disk has two duties, `info` and `read`; everything else has a default.  Methods may be plain or
``async``; plain ones run one at a time on the disk's own thread, async ones run together on that
thread's loop.  An ``OSError`` becomes ``IOERR`` for that request; so does any other exception,
which is also logged with its traceback, and the disk goes on being served.
"""
# ruff: noqa: ARG002 - the defaults name the parameters that others use

import errno
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from vhostblk.errors import VhostBlkError


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskInfo:
    """
    What a disk says of itself; asked once it is open.

    Args:
        size: Bytes; a multiple of *block_size*.
        block_size: Bytes every offset and length is a multiple of; a power of two from 512.
        physical_block_size: Bytes written at once without reading first; 0: *block_size*.
        optimal_io_size: Bytes of the best request; 0: no opinion.
        read_only: The disk cannot be written, whatever methods it has.
        volatile: Writes may sit in a cache until `flush`.
        discard_alignment: Bytes; 0: *block_size*.
        max_discard: Bytes of one `discard` at most; 0: not offered, whatever methods it has.
        max_write_zeroes: Bytes of one `write_zeroes` at most; 0: zeroes are written by `write`.
        may_unmap: `write_zeroes` with *unmap* may leave a hole.
    """

    size: int
    block_size: int = 512
    physical_block_size: int = 0
    optimal_io_size: int = 0
    read_only: bool = False
    volatile: bool = True
    discard_alignment: int = 0
    max_discard: int = 1 << 30
    max_write_zeroes: int = 1 << 30
    may_unmap: bool = False


@dataclass(frozen=True, slots=True)
class Extent:
    """
    A run of bytes of one kind.

    Args:
        offset: First byte.
        length: Bytes.
        hole: Nothing is stored there; it reads as zeroes.
    """

    offset: int
    length: int
    hole: bool


class Disk(Protocol):
    """
    A block back-end.

    Subclass it, or bring any object with the two required methods.  What a disk *can* follows
    from the methods it defines itself: without `write` it is read-only, without `discard`
    discards are not offered, without `write_zeroes` zeroes are written by `write`.

    *views* are writable (`read`) or read-only (`write`) memoryviews of guest memory, in guest
    order, their lengths adding up to the request's.  They die when the method returns: a disk
    that keeps one, or a slice of one, is broken.  A write view can change while it is looked at:
    hash, compress or compare a copy (``bytes(view)``).

    Attributes:
        parallel: How many plain methods may run at once, each in a thread of its own.  1: one at a
            time, on the disk's own thread, on which all but requests are called in any case.  More
            says that the disk is thread-safe; it pays where methods wait outside of Python.
    """

    parallel: ClassVar[int] = 1

    def info(self) -> DiskInfo:
        """
        Return what the disk is; called after `open`, and again when its size may be another.

        Of what it says then only the size counts.
        """
        ...

    def read(self, offset: int, views: Sequence[memoryview]) -> Awaitable[None] | None:
        """Fill *views* with what is stored from byte *offset* on."""
        ...

    def write(self, offset: int, views: Sequence[memoryview]) -> Awaitable[None] | None:
        """
        Store *views* from byte *offset* on.

        A disk that can make one write stable by itself takes a keyword ``fua: bool`` as well;
        for others the device calls `flush` behind a write that must be stable.
        """
        raise OSError(errno.EROFS, "the disk has no write method")

    def flush(self) -> Awaitable[None] | None:
        """Make every write that has returned stable.  Default: nothing is volatile."""
        return None

    def discard(self, offset: int, length: int) -> Awaitable[None] | None:
        """Forget *length* bytes from *offset* on.  Default: not offered."""
        raise OSError(errno.EOPNOTSUPP, "the disk has no discard method")

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> Awaitable[None] | None:
        """
        Make *length* bytes from *offset* on read as zeroes.

        Args:
            offset: First byte.
            length: Bytes.
            unmap: A hole is welcome.
        """
        raise OSError(errno.EOPNOTSUPP, "the disk has no write_zeroes method")

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what is stored in a range, in order, without gaps.  Default: all of it is."""
        yield Extent(offset, length, hole=False)

    def resize(self, size: int) -> Awaitable[None] | None:
        """
        Have *size* bytes from now on; what is added reads as zeroes.  Default: it cannot.

        Args:
            size: Bytes, a multiple of the block size.  Where it is less than before, no request
                is under way behind it, and none comes.
        """
        raise VhostBlkError("the disk has no resize method")

    def inherit(self, before: "Disk") -> Awaitable[None] | None:
        """
        Take what the object of the old code had in memory.  Default: nothing.

        Called when the code is loaded again, between `open` and the first request: *before* has
        been flushed, nothing uses it any more, and it is closed next.
        """
        return None

    def open(self) -> Awaitable[None] | None:
        """Get ready, on the thread that will serve; before everything else."""
        return None

    def close(self) -> Awaitable[None] | None:
        """Let go of everything; nothing is called afterwards."""
        return None


class SharedDisk(Protocol):
    """
    A disk that somebody else uses while no guest runs on it here, as the ends of a migration do.

    A device calls `lock` before the first request of a start, and `unlock` behind the last one,
    once `flush` has returned; between the two it is this process's alone.  A layer hands both on.

    Attributes:
        lock_while_running: True: as above, and `open` locks nothing.  A disk without it, or where
            it is False, is locked by its `open`, if at all, and neither method is called.
    """

    lock_while_running: bool

    def lock(self) -> Awaitable[None] | None:
        """
        Take it, and forget what was cached of it.

        Raises:
            VhostBlkError: Somebody else has it; it is tried again, and no request comes before.
        """
        ...

    def unlock(self) -> Awaitable[None] | None:
        """Let others have it; may be called without a `lock` before."""
        ...


class MarkedDisk(Protocol):
    """
    A disk on which can be seen what a process that was killed still has under way there.

    A mark belongs to one inflight region, of which *number* is made.  It outlives the process
    until its last I/O has returned.  All methods are plain, and none waits for anybody.  Which
    disk is one: `vhostblk.disk.call.marked`.
    """

    def mark(self, number: int) -> None:
        """Put the mark on: from now on, requests of that region may be under way."""
        ...

    def unmark(self, number: int) -> None:
        """Take it off: none is."""
        ...

    def marked_by_others(self, number: int) -> bool:
        """Whether it is on, and is of another process, or of another open disk in this one."""
        ...


class FileIo(StrEnum):
    """Which way the C core takes to a file: see "which way a request takes" in the explanations."""

    AUTO = "auto"
    RING = "ring"
    INLINE = "inline"


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeFile:
    """
    A disk the C core can serve: an open file or block device.

    Args:
        fd: Stays the disk's.
        direct: Opened with O_DIRECT.
        mem_align: Bytes O_DIRECT wants buffers aligned to, else 1.
        offset_align: Bytes O_DIRECT wants offsets and lengths aligned to, else 1.
        block_device: Not a regular file.
        io: Which way reads and writes take.
    """

    fd: int
    direct: bool = False
    mem_align: int = 1
    offset_align: int = 1
    block_device: bool = False
    io: FileIo = FileIo.AUTO


@dataclass(frozen=True, slots=True)
class NativeMemory:
    """
    A disk the C core can serve: private anonymous memory.

    Args:
        address: First byte, in this process; stays the disk's.
        size: Bytes.
    """

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class NativeNull:
    """
    A disk the C core can serve: nothing at all.

    Args:
        zero: Reads give zeroes; without it they leave the guest's buffer alone.
    """

    zero: bool = True


NativeSpec = NativeFile | NativeMemory | NativeNull


class NativeDisk(Protocol):
    """A disk that, once open, the C core can serve without Python."""

    def native(self) -> NativeSpec:
        """Say how; valid until `Disk.close`."""
        ...
