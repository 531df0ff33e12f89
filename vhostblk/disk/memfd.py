"""
A disk in a memfd: memory that outlives this process, as long as somebody holds its descriptor.

Served as a file is, so reading what was never written costs no memory; a request costs a system
call more than with private memory.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence

from vhostblk.disk import holes, transfer
from vhostblk.disk.api import Disk, DiskInfo, Extent, NativeFile
from vhostblk.errors import VhostBlkError

_PAGE = os.sysconf("SC_PAGESIZE")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_ZERO_CHUNK = 1 << 20
_ZEROES = memoryview(bytes(_ZERO_CHUNK))


class Memfd(Disk):
    """
    A sparse disk in a memfd.

    Args:
        size: Bytes, a multiple of 512, at least one sector.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._fd = -1

    def share(self) -> Sequence[int]:
        """Return the descriptor that is the disk."""
        return (self._fd,)

    def adopt(self, fds: Sequence[int]) -> None:
        """
        Be the disk of another process, once open.

        Args:
            fds: As `share` returned them there; taken.

        Raises:
            VhostBlkError: That is not of this size.
        """
        (self._fd,) = fds
        size = os.fstat(self._fd).st_size
        if size != self._size:
            raise VhostBlkError(f"memory: the disk has {size} bytes, not {self._size}")

    def open(self) -> None:
        """
        Make the file; no memory yet.

        Raises:
            VhostBlkError: The kernel has none so large for us.
        """
        if self._fd >= 0:
            return
        fd = os.memfd_create("vhostblk disk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, self._size)
            # Nobody who gets hold of it can take the memory away under a request.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except (OSError, OverflowError) as error:
            os.close(fd)
            raise VhostBlkError(f"memory: {self._size} bytes cannot be had: {error}") from error
        self._fd = fd

    def close(self) -> None:
        """Let go of it; the memory goes with its last descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def info(self) -> DiskInfo:
        """Return its size; a discard is worth it by the page."""
        return DiskInfo(
            size=self._size,
            physical_block_size=_PAGE,
            discard_alignment=_PAGE,
            volatile=False,
            may_unmap=True,
        )

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy from the disk into *views*."""
        transfer.read(self._fd, offset, views)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy *views* to the disk."""
        transfer.write(self._fd, offset, views)

    def discard(self, offset: int, length: int) -> None:
        """Give a range back: it reads as zeroes."""
        holes.discard(self._fd, offset, length, block_device=False)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeroes; without *unmap* its pages stay."""
        if holes.zero(self._fd, offset, length, unmap=unmap):
            return
        end = offset + length
        for at in range(offset, end, _ZERO_CHUNK):
            self.write(at, [_ZEROES[: min(_ZERO_CHUNK, end - at)]])

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what has memory and what has none."""
        return holes.extents(self._fd, offset, length)

    def native(self) -> NativeFile:
        """Say how the C core serves it: as a file."""
        return NativeFile(fd=self._fd)
