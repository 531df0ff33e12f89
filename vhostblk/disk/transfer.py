"""
Move bytes between views and a file: all of them, or an error.

The kernel may move less than it was asked, takes at most 1024 views at once, and for O_DIRECT
wants every view aligned; a guest's views are none of that.
"""

import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

IOV_MAX = 1024
"""Views of one system call at most (<limits.h>)."""

_BOUNCE = 1 << 20
_ZEROES = memoryview(bytes(_BOUNCE))


def read(fd: int, offset: int, views: Sequence[memoryview]) -> None:
    """
    Fill *views* from byte *offset* of a file on.

    Raises:
        OSError: As the kernel says; EIO where the file ends before the views do.
    """
    rest = [view for view in views if len(view)]
    try:
        while rest:
            done = os.preadv(fd, rest[:IOV_MAX], offset)
            _some(done)
            offset += done
            rest = _after(rest, done)
    finally:
        # A slice that lives on in a traceback would keep guest memory from being released.
        rest.clear()


def write(fd: int, offset: int, views: Sequence[memoryview], *, stable: bool = False) -> None:
    """
    Write *views* from byte *offset* of a file on.

    Args:
        fd: The file.
        offset: First byte.
        views: What to write, in order.
        stable: It is on the medium when this returns (RWF_DSYNC).

    Raises:
        OSError: As the kernel says; earlier views may have been written.
    """
    flags = os.RWF_DSYNC if stable else 0
    rest = [view for view in views if len(view)]
    try:
        while rest:
            done = os.pwritev(fd, rest[:IOV_MAX], offset, flags)
            _some(done)
            offset += done
            rest = _after(rest, done)
    finally:
        rest.clear()  # as above


class Bounce:
    """
    Transfers for O_DIRECT, through one aligned buffer of our own.

    Everything goes through it, aligned or not: Python cannot tell where a read-only view lies,
    and next to a Python call per request a copy costs little.  The C core does better.

    The buffer holds guest data: it is in no core dump and in no child of ours, and it is wiped
    behind every transfer.

    Args:
        align: Bytes the kernel wants buffers, offsets and lengths aligned to; up to a page.
    """

    def __init__(self, align: int) -> None:
        self._align = align
        self._map = mmap.mmap(-1, _BOUNCE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_DONTDUMP)
        self._map.madvise(mmap.MADV_DONTFORK)
        self._buffer = memoryview(self._map)
        self._lock = Lock()

    def close(self) -> None:
        """Give the buffer back."""
        self._buffer.release()
        self._map.close()

    def read(self, fd: int, offset: int, views: Sequence[memoryview]) -> None:
        """Fill *views*; as `read`.  *offset* and the length of all are aligned."""
        total = sum(map(len, views))
        rest = list(views)
        try:
            with self._lock, self._wiped_behind(total):
                for at in range(0, total, _BOUNCE):
                    with self._buffer[: min(_BOUNCE, total - at)] as piece:
                        self._fill(fd, offset + at, piece)
                        rest = _scatter(piece, rest)
        finally:
            rest.clear()  # as in `read`

    def write(
        self, fd: int, offset: int, views: Sequence[memoryview], *, stable: bool = False
    ) -> None:
        """Write *views*; as `write`.  *offset* and the length of all are aligned."""
        total = sum(map(len, views))
        rest = list(views)
        try:
            with self._lock, self._wiped_behind(total):
                for at in range(0, total, _BOUNCE):
                    with self._buffer[: min(_BOUNCE, total - at)] as piece:
                        rest = _gather(piece, rest)
                        self._drain(fd, offset + at, piece, stable=stable)
        finally:
            rest.clear()  # as in `read`

    @contextmanager
    def _wiped_behind(self, total: int) -> Iterator[None]:
        try:
            yield
        finally:
            used = min(_BOUNCE, total)
            self._buffer[:used] = _ZEROES[:used]

    def _fill(self, fd: int, offset: int, piece: memoryview) -> None:
        at = 0
        while at < len(piece):
            at += self._whole(os.preadv(fd, [piece[at:]], offset + at))

    def _drain(self, fd: int, offset: int, piece: memoryview, *, stable: bool) -> None:
        flags = os.RWF_DSYNC if stable else 0
        at = 0
        while at < len(piece):
            at += self._whole(os.pwritev(fd, [piece[at:]], offset + at, flags))

    def _whole(self, done: int) -> int:
        """Go on from the last aligned byte: a direct transfer cannot begin anywhere else."""
        done -= done % self._align
        _some(done)
        return done


def _some(done: int) -> None:
    """Raise EIO where nothing was moved: the file was cut short under the disk."""
    if not done:
        raise OSError(errno.EIO, "the file ends within the disk")


def _after(views: list[memoryview], done: int) -> list[memoryview]:
    """Drop the first *done* bytes of *views*."""
    for i, view in enumerate(views):
        if done < len(view):
            return [view[done:], *views[i + 1 :]]
        done -= len(view)
    return []


def _scatter(piece: memoryview, views: list[memoryview]) -> list[memoryview]:
    """Copy *piece* into the first views; return what is not filled."""
    at = 0
    for i, view in enumerate(views):
        count = min(len(view), len(piece) - at)
        view[:count] = piece[at : at + count]
        at += count
        if count < len(view):
            return [view[count:], *views[i + 1 :]]
    return []


def _gather(piece: memoryview, views: list[memoryview]) -> list[memoryview]:
    """Fill *piece* from the first views; return what is left."""
    at = 0
    for i, view in enumerate(views):
        count = min(len(view), len(piece) - at)
        piece[at : at + count] = view[:count]
        at += count
        if count < len(view):
            return [view[count:], *views[i + 1 :]]
    return []
