"""
Disk images, many that are nearly the same: a master that goes on, and slots that follow it.

The master holds what is stable at a moment.  A slot is the same plus the pieces of one state, for
one checker; afterwards it follows the master by the ranges in which the two may differ.  The whole
is copied only where a checker has written to its slot, as a copy that shares its blocks where the
file system can (FICLONE), else without its holes.
"""

import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from vhostblk.disk.holes import extents
from vhostblk.disk.kernel import KEEP_SIZE, PUNCH_HOLE, fallocate
from vhostblk.disk.power import Piece
from vhostblk.disk.ranges import Range, joined
from vhostblk.errors import VhostBlkError

_FICLONE = 0x40049409  # <linux/fs.h>
_CHUNK = 1 << 20
_LONG_AGO = 10**18
"""Nanoseconds since 1970, 2001: so any write since is seen, however coarse the clock of files."""


class Image:
    """
    A sparse file; closed, and removed, by `close`.

    Args:
        path: Where it is made.
        size: Bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.ftruncate(self.fd, size)

    def close(self) -> None:
        """Remove it."""
        os.close(self.fd)
        self.path.unlink(missing_ok=True)

    def keep(self) -> None:
        """Let the file stay as it is."""
        os.close(self.fd)

    def store(self, pieces: Iterable[Piece]) -> list[Range]:
        """
        Write pieces in order; return where.

        Raises:
            VhostBlkError: One is behind the end.
        """
        ranges = []
        for piece in pieces:
            if piece.end > self.size:
                change = piece.change
                raise VhostBlkError(
                    f"request {change.number} writes up to byte {change.offset + change.length}, "
                    f"the disk has {self.size}: it became larger, say --size"
                )
            if piece.data is None:
                self.clear(piece.start, piece.end)
            else:
                os.pwrite(self.fd, piece.data, piece.start)
            ranges.append((piece.start, piece.end))
        return ranges

    def clear(self, start: int, end: int) -> None:
        """Make a range a hole."""
        fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, start, end - start)

    def copy_range(self, source: int, start: int, end: int) -> None:
        """Have what another file has there, holes too."""
        for extent in extents(source, start, end - start):
            until = extent.offset + extent.length
            if extent.hole:
                self.clear(extent.offset, until)
                continue
            for at in range(extent.offset, until, _CHUNK):
                os.pwrite(self.fd, os.pread(source, min(_CHUNK, until - at), at), at)

    def copy(self, source: int, size: int) -> None:
        """
        Have all that another file has.

        Args:
            source: Its descriptor.
            size: Bytes of it at most.
        """
        try:
            fcntl.ioctl(self.fd, _FICLONE, source)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY}:
                raise
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, self.size)
            self.copy_range(source, 0, size)
        os.ftruncate(self.fd, self.size)


class Slot:
    """
    An image for one checker at a time.

    Args:
        path: Where it is made.
        size: Bytes.
        fresh: Copy the whole for each state, whatever is seen.
    """

    def __init__(self, path: Path, size: int, *, fresh: bool = False) -> None:
        self.path = path
        self._size = size
        self._fresh = fresh
        self._image = Image(path, size)
        self._whole = True
        """All of it is to be copied."""
        self._stale: list[Range] = []
        self._stamp: object = None

    def master_went_on(self, ranges: Iterable[Range]) -> None:
        """Be told where the master has changed."""
        if not self._whole:
            self._stale += ranges

    def become(self, master: Image, pieces: Iterable[Piece]) -> None:
        """Be the master, and these pieces over it."""
        if self._whole or self._stamp != self._look():
            self._renew()
            self._image.copy(master.fd, self._size)
        else:
            for start, end in joined(self._stale):
                self._image.copy_range(master.fd, start, end)
        self._stale = self._image.store(pieces)
        self._whole = self._fresh
        os.utime(self.path, ns=(_LONG_AGO, _LONG_AGO))
        self._stamp = self._look()

    def close(self) -> None:
        """Remove it."""
        self._image.close()

    def _look(self) -> object:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _renew(self) -> None:
        """Make the file anew if a checker has put another in its place."""
        ours = os.fstat(self._image.fd)
        try:
            same = os.path.samestat(ours, self.path.stat())
        except FileNotFoundError:
            same = False
        if not same:
            self._image.close()
            self._image = Image(self.path, self._size)


def first(path: Path, size: int, image: Path | None) -> Image:
    """
    Make the master as the disk was before the recording.

    Args:
        path: Where.
        size: Bytes of the disk.
        image: What was on it; None: zeroes.

    Raises:
        VhostBlkError: It does not fit.
    """
    master = Image(path, size)
    if image is None:
        return master
    with image.open("rb") as source:
        length = os.lseek(source.fileno(), 0, os.SEEK_END)
        if length > size:
            master.close()
            raise VhostBlkError(
                f"{image} has {length} bytes, the disk that was recorded {size}: give the image it "
                "had at first"
            )
        master.copy(source.fileno(), length)
    return master
