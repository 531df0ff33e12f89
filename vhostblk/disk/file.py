"""
A disk in a regular file or on a block device.

`open` looks closely, because what is wrong with an image is best said before a guest uses it;
after that the C core usually serves the file by itself (`File.native`), and these methods serve it
for the reference engine and for layers written in Python.
"""

import fcntl
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from vhostblk.disk import holes, lock, mark, signature, transfer
from vhostblk.disk.api import Disk, DiskInfo, Extent, FileIo, NativeFile
from vhostblk.disk.geometry import Geometry, measure, open_image, size_of
from vhostblk.errors import VhostBlkError

log = logging.getLogger(__name__)

_ZERO_CHUNK = 1 << 20
_ZEROES = memoryview(bytes(_ZERO_CHUNK))
_LONGEST = 1 << 30


class CacheMode(StrEnum):
    """
    What may hold a write back, by QEMU's names.

    ============  ============  ================================
    mode          transfers     writes
    ============  ============  ================================
    writeback     page cache    stable at the driver's flush
    none          O_DIRECT      stable at the driver's flush
    writethrough  page cache    each stable when it completes
    directsync    O_DIRECT      each stable when it completes
    ============  ============  ================================
    """

    WRITEBACK = "writeback"
    NONE = "none"
    WRITETHROUGH = "writethrough"
    DIRECTSYNC = "directsync"

    @property
    def direct(self) -> bool:
        """Whether transfers go around the page cache."""
        return self in {CacheMode.NONE, CacheMode.DIRECTSYNC}

    @property
    def writeback(self) -> bool:
        """Whether the driver is told of a cache that it has to flush."""
        return self in {CacheMode.WRITEBACK, CacheMode.NONE}


class Locking(StrEnum):
    """Whether to take QEMU's image lock; AUTO does without where the file system has none."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class LockWhen(StrEnum):
    """How long the lock is held: from open to close, or while a guest runs (for migration)."""

    ALWAYS = "always"
    WHILE_RUNNING = "while-running"


@dataclass(frozen=True, slots=True)
class _Opened:
    """
    What exists between `File.open` and `File.close`.

    Args:
        fd: Ours; the lock hangs on it.
        geometry: As it was found.
        bounce: For O_DIRECT, else None.
    """

    fd: int
    geometry: Geometry
    bounce: transfer.Bounce | None


class File(Disk):
    """
    A raw disk in a file.

    Args:
        path: A regular file or block device.
        cache: What may hold a write back.
        read_only: Opened for reading only.
        discard: Discards are offered where they can be carried out, and zeroes may leave holes.
        locking: Whether to take QEMU's image lock.
        lock: For how long.
        io: Which way the C core reads and writes; nothing that is stored depends on it.
    """

    def __init__(  # noqa: PLR0913 - one for each thing that can be said of a file
        self,
        path: str | os.PathLike[str],
        *,
        cache: CacheMode = CacheMode.WRITEBACK,
        read_only: bool = False,
        discard: bool = True,
        locking: Locking = Locking.AUTO,
        lock: LockWhen = LockWhen.ALWAYS,
        io: FileIo = FileIo.AUTO,
    ) -> None:
        self._path = os.fspath(path)
        self._cache = cache
        self._read_only = read_only
        self._discard = discard
        self._locking = locking
        self._lock_when = lock
        self._io = io
        self._opened: _Opened | None = None
        self._adopted: int | None = None
        self._before: File | None = None
        self._called_off = threading.Event()

    @property
    def path(self) -> str:
        """The name it was given."""
        return self._path

    @property
    def writeback(self) -> bool:
        """Start value of the device's write cache switch; the driver may change it."""
        return self._cache.writeback

    @property
    def lock_while_running(self) -> bool:
        """Whether `open` leaves the lock to whoever runs a guest."""
        return self._lock_when is LockWhen.WHILE_RUNNING

    def share(self) -> Sequence[int]:
        """Return the open file; whoever has it has the lock, too."""
        return (self._open.fd,)

    def adopt(self, fds: Sequence[int]) -> None:
        """
        Go on with the file that another process has open: `open` opens none.

        Args:
            fds: As `share` returned them there; taken.

        Raises:
            VhostBlkError: It is not open in the way it should be here.
        """
        (self._adopted,) = fds
        flags = fcntl.fcntl(self._adopted, fcntl.F_GETFL)
        mode = os.O_RDONLY if self._read_only else os.O_RDWR
        if flags & os.O_ACCMODE != mode or bool(flags & os.O_DIRECT) != self._cache.direct:
            raise VhostBlkError(
                f"{self._path}: it is open in another way than cache and read-only ask for: undo "
                "that change, or stop and start the server"
            )

    def follow(self, before: "File") -> None:
        """Take the place of an open one, whose lock is no obstacle where it is the same file."""
        self._before = before

    def open(self) -> None:
        """
        Open, lock, measure, and look at the first bytes.

        Raises:
            VhostBlkError: It cannot be served like that; says what to do.
            OSError: The kernel fails in a way that says it all.
        """
        write, direct = not self._read_only, self._cache.direct
        taken, self._adopted = self._adopted, None
        fd = open_image(self._path, write=write, direct=direct) if taken is None else taken
        try:
            # One that was taken over has brought its lock.
            if taken is None and not self.lock_while_running:
                self._lock(fd, seconds=lock.ORPHAN_SECONDS)
            geometry = measure(fd, self._path, write=write, direct=direct)
        except BaseException:
            os.close(fd)
            raise
        bounce = transfer.Bounce(geometry.alignment.offset) if direct else None
        self._opened = _Opened(fd, geometry, bounce)
        try:
            if taken is None:
                self._look(geometry.block_size)
        except BaseException:
            self.close()
            raise

    def call_off(self) -> None:
        """Have an `open` that waits for the lock of a dead process give up; from any thread."""
        self._called_off.set()

    def close(self) -> None:
        """Close the file, and with it give its lock back."""
        if self._opened is None:
            return
        if self._opened.bounce is not None:
            self._opened.bounce.close()
        os.close(self._opened.fd)
        self._opened = None

    def info(self) -> DiskInfo:
        """
        Return what was measured, and the size it has now.

        Always volatile, for the driver may turn caching on.
        """
        geometry = self._open.geometry
        unmap = geometry.can_discard and self._discard
        return DiskInfo(
            size=size_of(self._open.fd, block_device=geometry.block_device),
            block_size=geometry.block_size,
            physical_block_size=geometry.physical_block_size,
            optimal_io_size=geometry.optimal_io_size,
            read_only=self._read_only,
            discard_alignment=geometry.discard_alignment,
            max_discard=_LONGEST if unmap else 0,
            may_unmap=unmap,
        )

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill *views* from the file."""
        opened = self._open
        if opened.bounce is not None:
            opened.bounce.read(opened.fd, offset, views)
        else:
            transfer.read(opened.fd, offset, views)

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> None:
        """Store *views* in the file; with *fua* on the medium."""
        opened = self._open
        if opened.bounce is not None:
            opened.bounce.write(opened.fd, offset, views, stable=fua)
        else:
            transfer.write(opened.fd, offset, views, stable=fua)

    def flush(self) -> None:
        """Bring what was written to the medium."""
        os.fdatasync(self._open.fd)

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole, or discard on the device."""
        opened = self._open
        holes.discard(opened.fd, offset, length, block_device=opened.geometry.block_device)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes, by writing them where the file system cannot."""
        if holes.zero(self._open.fd, offset, length, unmap=unmap and self._discard):
            return
        end = offset + length
        for at in range(offset, end, _ZERO_CHUNK):
            self.write(at, [_ZEROES[: min(_ZERO_CHUNK, end - at)]])

    def resize(self, size: int) -> None:
        """
        Cut a regular file, or make it longer by a hole.

        Raises:
            VhostBlkError: It is a block device.
            OSError: The file system has no room, or no file of that size.
        """
        opened = self._open
        if opened.geometry.block_device:
            raise VhostBlkError(
                f"{self._path}: a block device has the size it has: "
                "resize it with its own tools, then look at it again by naming no size"
            )
        os.ftruncate(opened.fd, size)

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield data and holes as the file system knows them."""
        return holes.extents(self._open.fd, offset, length)

    def native(self) -> NativeFile:
        """Say how the C core serves it."""
        opened = self._open
        return NativeFile(
            fd=opened.fd,
            direct=self._cache.direct,
            mem_align=opened.geometry.alignment.memory,
            offset_align=opened.geometry.alignment.offset,
            block_device=opened.geometry.block_device,
            io=self._io,
        )

    @property
    def _open(self) -> _Opened:
        assert self._opened is not None, "open() comes first"  # noqa: S101 - our own promise
        return self._opened

    def lock(self) -> None:
        """
        Take the lock, and read anew from then on: whoever had it may be on another host.

        Raises:
            VhostBlkError: Somebody has it.
        """
        fd = self._open.fd
        self._lock(fd, seconds=0)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def unlock(self) -> None:
        """Give the lock back; the file stays open."""
        if self._locking is not Locking.OFF:
            with suppress(OSError):  # a file system without locks
                lock.release(self._open.fd)

    def mark(self, number: int) -> None:
        """Mark the open file, which the core's I/O goes through; where it can be."""
        with suppress(OSError):  # a file system without locks
            mark.put(self._open.fd, number)

    def unmark(self, number: int) -> None:
        """Take the mark off; one of a file that is closed is gone."""
        if self._opened is not None:
            with suppress(OSError):
                mark.take_off(self._opened.fd, number)

    def marked_by_others(self, number: int) -> bool:
        """Whether another open file of the same image has that mark; False: or nobody can tell."""
        with suppress(OSError):
            return mark.by_others(self._open.fd, number)
        return False

    def _lock(self, fd: int, *, seconds: float) -> None:
        if self._locking is Locking.OFF:
            return
        try:
            write, before = not self._read_only, self._before
            ours = before is not None and before.has_locked(fd, write=write)
            pause = self._called_off.wait
            lock.acquire(fd, self._path, write=write, alone=not ours, seconds=seconds, pause=pause)
        except lock.LockUnavailableError as error:
            if self._locking is Locking.ON:
                raise
            log.warning("%s", error)

    def has_locked(self, fd: int, *, write: bool) -> bool:
        """Whether this keeps the lock that the same file, open as *fd*, needs."""
        if self._opened is None or (write and self._read_only):
            return False
        return os.path.sameopenfile(self._opened.fd, fd) and lock.has(self._opened.fd)

    def _look(self, length: int) -> None:
        start = bytearray(max(length, signature.LENGTH))
        try:
            with memoryview(start) as view:
                self.read(0, [view])
            text = signature.warning(self._path, start)
        finally:
            start[:] = bytes(len(start))  # the guest's: not to lie about in our memory
        if text:
            log.warning("%s", text)
