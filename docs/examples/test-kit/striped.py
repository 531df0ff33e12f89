"""A home-made disk: two files, in stripes."""

import os
from collections.abc import Iterator, Sequence

import vhostblk

STRIPE = 65536


class Striped(vhostblk.Disk):
    """Stripes of 64 KiB in two files, in turns; *size* bytes together."""

    def __init__(self, first: str, second: str, size: int) -> None:
        self.paths, self.size = (first, second), size

    def open(self) -> None:
        """Open both, and make them as long as they have to be."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.fds = [os.open(path, flags, 0o600) for path in self.paths]
        for fd in self.fds:
            os.ftruncate(fd, (self.size // STRIPE + 2) // 2 * STRIPE)

    def close(self) -> None:
        """Close both."""
        for fd in self.fds:
            os.close(fd)

    def info(self) -> vhostblk.DiskInfo:
        """Return the size."""
        return vhostblk.DiskInfo(size=self.size, optimal_io_size=STRIPE)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Read each piece where it is."""
        for fd, at, piece in self.pieces(offset, views):
            os.preadv(fd, [piece], at)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write each piece where it is."""
        for fd, at, piece in self.pieces(offset, views):
            os.pwritev(fd, [piece], at)

    def flush(self) -> None:
        """Make both stable."""
        for fd in self.fds:
            os.fdatasync(fd)

    def pieces(
        self, offset: int, views: Sequence[memoryview]
    ) -> Iterator[tuple[int, int, memoryview]]:
        """Yield file, place and memory of each part that lies in one stripe."""
        for view in views:
            done = 0
            while done < len(view):
                stripe, within = divmod(offset + done, STRIPE)
                piece = view[done : done + STRIPE - within]
                yield self.fds[stripe % 2], stripe // 2 * STRIPE + within, piece
                piece.release()
                done += STRIPE - within
            offset += len(view)
