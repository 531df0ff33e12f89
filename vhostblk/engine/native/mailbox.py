"""
Where a queue of the core leaves jobs for a disk that is served in Python.

A batch crosses in one call each way, as an array of words: an attribute of a C struct costs as
much as the method of a simple disk.
"""

from array import array
from collections.abc import Sequence
from errno import EIO
from itertools import chain
from struct import Struct
from typing import Any, cast
from weakref import ref

from vhostblk.engine.api import Job, Op
from vhostblk.engine.native.core import ffi, lib, make

TAKE = 64
"""Jobs taken from a mailbox, or ended in it, at once."""

JOB = Struct("=QQQIIIIQQQ")
"""``struct vhb_job``."""
_PIECE = Struct("=QQ")
"""``struct vhb_piece``."""
_OPS = tuple(Op)
_FUA: int = lib.VHB_REQ_FUA
_UNMAP: int = lib.VHB_REQ_UNMAP
_ERRNOS = range(4096)
_ZERO = ffi.cast("char *", 0)


class NativeMailbox:
    """
    `Mailbox` over ``vhb_mailbox_*``; used by the thread that serves the disk.

    Freed when nobody holds it: a thread that is stuck in its disk may come back to take and to
    end jobs, and must meet neither freed memory nor the number of its descriptor reused.

    Args:
        slots: Jobs it can hold.
    """

    def __init__(self, slots: int) -> None:
        self.handle = ffi.gc(make("mailbox", lib.vhb_mailbox_new, slots), lib.vhb_mailbox_free)
        self.disk = lib.vhb_mailbox_disk(self.handle)
        self._jobs = ffi.new("struct vhb_job[]", TAKE)
        self._bytes = memoryview(ffi.buffer(self._jobs))
        self._ended = ffi.new("struct vhb_ended[]", TAKE)
        self._words = memoryview(ffi.buffer(self._ended)).cast("Q")

    def fileno(self) -> int:
        """Return a descriptor that is readable while jobs wait."""
        return cast("int", lib.vhb_mailbox_fd(self.handle))

    def take(self) -> list[Job]:
        """Return the jobs that wait, `TAKE` at most."""
        n = lib.vhb_mailbox_take(self.handle, self._jobs, TAKE)
        return [_job(row) for row in JOB.iter_unpack(self._bytes[: n * JOB.size])] if n else []

    def complete(self, ended: Sequence[tuple[int, int]]) -> None:
        """End jobs: (tag, errno)."""
        good = True
        for at in range(0, len(ended), TAKE):
            some = ended[at : at + TAKE]
            self._words[: 2 * len(some)] = _words(some)
            r = lib.vhb_mailbox_complete_many(self.handle, self._ended, len(some))
            good = good and r == 0
        if not good:
            raise ValueError("a tag names no job, or one that was ended before")

    def lost(self) -> int:
        """Return how many pages of guest memory have vanished under the calling thread."""
        return cast("int", lib.vhb_fault_seen())

    def break_queue(self, tag: int) -> None:
        """End a job whose views the disk kept."""
        if lib.vhb_mailbox_break(self.handle, tag) < 0:
            raise ValueError(f"no job has the tag {tag:#x}, or it was ended before")


def _words(ended: Sequence[tuple[int, int]]) -> "array[int]":
    try:
        return array("Q", chain.from_iterable(ended))
    except OverflowError:  # no errno; the core takes care of the others that are none
        return array("Q", (word for tag, e in ended for word in (tag, e if e in _ERRNOS else EIO)))


def _job(row: tuple[int, ...]) -> Job:
    """Make a job of the words of one; each view is made from an object of its own."""
    tag, offset, length, op, flags, n, _, pieces, host, size = row
    if n == 1:  # as most have
        buffer = ffi.buffer(_ZERO + host, size)
        view = memoryview(buffer)
        views: tuple[memoryview, ...] = (view.toreadonly() if op else view,)
        exporters: tuple[ref[object], ...] = (ref(buffer),)
    else:
        views, exporters = _scattered(op, pieces, n)
    fua, unmap = flags & _FUA != 0, flags & _UNMAP != 0
    return Job(tag, _OPS[op], offset, length, views, fua, unmap, exporters)


def _scattered(
    op: int, pieces: int, n: int
) -> tuple[tuple[memoryview, ...], tuple[ref[object], ...]]:
    raw: Any = ffi.buffer(_ZERO + pieces, n * _PIECE.size) if n else b""
    buffers = [ffi.buffer(_ZERO + host, size) for host, size in _PIECE.iter_unpack(raw)]
    views = [memoryview(buffer) for buffer in buffers]
    if op == Op.WRITE:
        views = [view.toreadonly() for view in views]
    return tuple(views), tuple(ref(buffer) for buffer in buffers)
