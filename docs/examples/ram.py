"""
A disk in memory.

    vhostblk serve --socket-path /tmp/ram.sock python:ram:Ram,size=64M
"""

from collections.abc import Sequence

import vhostblk


class Ram(vhostblk.Disk):
    """*size* bytes that are gone when the server ends."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def info(self) -> vhostblk.DiskInfo:
        """Nothing is volatile that cannot be made stable."""
        return vhostblk.DiskInfo(size=len(self.data), volatile=False)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy to the guest, piece by piece."""
        with memoryview(self.data) as data:
            for view in views:
                view[:] = data[offset : offset + len(view)]
                offset += len(view)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Copy from the guest."""
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Save the guest sending zeroes."""
        self.data[offset : offset + length] = bytes(length)


if __name__ == "__main__":
    vhostblk.serve(Ram(64 << 20), "/tmp/ram.sock")
