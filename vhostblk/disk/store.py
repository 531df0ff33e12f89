"""
Where a layer keeps what it must not lose: a file of its own, or memory that looks like one.

Nothing here knows what is stored where; see `vhostblk.disk.cow_scratch` and
`vhostblk.disk.verify_sums`.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vhostblk.disk import holes, transfer
from vhostblk.disk.api import Extent
from vhostblk.errors import VhostBlkError

_CHUNK = 1 << 20
_ZEROES = memoryview(bytes(_CHUNK))


class Store:
    """
    An open file.

    Args:
        fd: Taken.
        path: Its name; empty: it is memory, of which nothing outlives the last descriptor.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        self._failed: OSError | None = None

    @property
    def length(self) -> int:
        """Bytes of the file, holes among them."""
        return os.fstat(self.fd).st_size

    @property
    def allocated(self) -> int:
        """Bytes that it takes."""
        return os.fstat(self.fd).st_blocks * 512

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill *views*."""
        transfer.read(self.fd, offset, views)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store *views*."""
        transfer.write(self.fd, offset, views)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes; with *unmap* by a hole, if there can be one."""
        if not length or holes.zero(self.fd, offset, length, unmap=unmap or not self.path):
            return
        end = offset + length
        for at in range(offset, end, _CHUNK):
            self.write(at, [_ZEROES[: min(_CHUNK, end - at)]])

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what is a hole in a range, and what is not."""
        return holes.extents(self.fd, offset, length)

    def resize(self, length: int) -> None:
        """Have *length* bytes; those that are new are a hole."""
        os.ftruncate(self.fd, length)

    def sync(self) -> None:
        """
        Make everything before stable.

        Raises:
            OSError: It is not.  Then it is never said to be, as the kernel forgets what it could
                not write.
        """
        if self._failed is not None:
            raise OSError(self._failed.errno, f"{self._failed.strerror}, before")
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._failed = error
            raise

    def close(self) -> None:
        """Let go of it, and of its lock."""
        os.close(self.fd)


def open_store(path: str, what: str = "scratch") -> Store:
    """
    Open such a file, or memory.

    Args:
        path: A regular file, made where there is none; empty: memory.
        what: The option that names it, for errors.

    Raises:
        VhostBlkError: It cannot be used; one line that says why.
    """
    if not path:
        return Store(os.memfd_create("vhostblk kept", os.MFD_CLOEXEC), "")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise VhostBlkError(f"{what}={path}: it cannot be opened: {error.strerror}") from error
    try:
        _check_kind(fd, path, what)
        _lock(fd, path, what)
        _sync_name(path)
    except BaseException:
        os.close(fd)
        raise
    return Store(fd, path)


def boot_id() -> bytes:
    """Return in which run of the kernel we are: what its page cache has is gone with it."""
    text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return bytes.fromhex(text.strip().replace("-", ""))


def _check_kind(fd: int, path: str, what: str) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise VhostBlkError(f"{what}={path}: it is no regular file: name another")


def _lock(fd: int, path: str, what: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            raise VhostBlkError(
                f"{what}={path}: in use: another disk or process writes to it: name another"
            ) from error
        if error.errno not in {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise


def _sync_name(path: str) -> None:
    """Have a file that was made be found after a crash; where that cannot be, it is made anew."""
    with suppress(OSError):
        fd = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
