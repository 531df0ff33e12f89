"""
A disk that remembers: each flush makes a version, and any version can be served again.

    vhostblk serve --socket-path /tmp/now.sock python:time_travel:Versions,path=d.log,size=1G
    vhostblk serve --socket-path /tmp/then.sock python:time_travel:Versions,path=d.log,size=1G,at=12

The file is a log of blocks: never changed, only appended to.  What an older version cannot see
is behind it in the log.  *at* gives that version, read-only, also while the newest is served.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence

import vhostblk

BLOCK = 4096
RECORD = struct.Struct("<8sQ")
"""In front of each block: what it is, and its place; of a version: its number, and no block."""
BLOCK_MARK, VERSION_MARK = b"block\0\0\0", b"version\0"


class Versions(vhostblk.Disk):
    """*size* bytes, their history in the file *path*; *at*: a version, to look at only."""

    def __init__(self, path: str, size: int, at: int | None = None) -> None:
        self.path, self.size, self.at = path, size, at
        self.version = 0
        self.places: dict[int, int] = {}  # where in the file the newest block of a place is

    def open(self) -> None:
        """Read the log up to the version that is wanted; cut off what has none behind it."""
        flags = os.O_RDONLY if self.at is not None else os.O_RDWR | os.O_CREAT
        self.fd = os.open(self.path, flags | os.O_CLOEXEC, 0o600)
        try:
            if self.at is None:  # two that append would write over each other
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.fd)
            raise vhostblk.VhostBlkError(
                f"{self.path} is served already: add ,at=VERSION"
            ) from None
        mark = os.pread(self.fd, len(BLOCK_MARK), 0)
        if not any(one.startswith(mark) for one in (BLOCK_MARK, VERSION_MARK)):
            os.close(self.fd)  # what is behind the last version is cut off: here, all of it
            raise vhostblk.VhostBlkError(f"{self.path} is no log, and is left as it is")
        end = self.replay()
        if self.at is not None and self.version != self.at:
            os.close(self.fd)
            raise vhostblk.VhostBlkError(f"{self.path} has versions 1 to {self.version}")
        self.end = self.flushed = end
        if self.at is None:
            os.ftruncate(self.fd, end)  # what was written behind the last flush

    def replay(self) -> int:
        """Take up what the log says; return where its last version ends."""
        at = end = 0
        seen: dict[int, int] = {}
        while len(head := os.pread(self.fd, RECORD.size, at)) == RECORD.size:
            mark, number = RECORD.unpack(head)
            at += RECORD.size
            if mark == VERSION_MARK:
                self.version, end = number, at
                self.places |= seen
                seen = {}
                if self.version == self.at:
                    break
            elif mark == BLOCK_MARK and os.fstat(self.fd).st_size >= at + BLOCK:
                seen[number] = at
                at += BLOCK
            else:
                break
        return end

    def close(self) -> None:
        """Make a last version of what was not flushed."""
        self.flush()
        os.close(self.fd)

    def info(self) -> vhostblk.DiskInfo:
        """Have the guest ask for whole blocks; the past cannot be written."""
        return vhostblk.DiskInfo(size=self.size, block_size=BLOCK, read_only=self.at is not None)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy each block from where it was written last."""
        length = sum(map(len, views))
        first, behind = offset // BLOCK, (offset + length) // BLOCK
        data = b"".join(self.block(place) for place in range(first, behind))
        for view in views:
            view[:] = data[: len(view)]
            data = data[len(view) :]

    def block(self, place: int) -> bytes:
        """Return a block; one that nobody wrote is zeroes."""
        at = self.places.get(place)
        return bytes(BLOCK) if at is None else os.pread(self.fd, BLOCK, at)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Append blocks."""
        data = b"".join(views)
        log = bytearray()
        places = {}
        for at in range(0, len(data), BLOCK):
            place = (offset + at) // BLOCK
            log += RECORD.pack(BLOCK_MARK, place)
            places[place] = self.end + len(log)
            log += data[at : at + BLOCK]
        self.append(log)
        self.places |= places

    def append(self, log: bytes | bytearray) -> None:
        """Put it behind everything else, whole."""
        done = os.pwrite(self.fd, log, self.end)
        if done != len(log):
            raise OSError(errno.ENOSPC, "the log could not be written to its end")
        self.end += done

    def flush(self) -> None:
        """Make a version, unless nothing was written since the last one."""
        if self.at is None and self.end != self.flushed:
            os.fdatasync(self.fd)  # the blocks are there before the version says so
            self.append(RECORD.pack(VERSION_MARK, self.version + 1))
            self.version += 1
            os.fdatasync(self.fd)
            self.flushed = self.end
