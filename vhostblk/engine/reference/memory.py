"""
Guest memory, touched at plain addresses.

Everything that is read is copied into a Python value first, once: the guest may change it while
we look.  16-bit fields are loaded and stored whole, as the other side expects.
"""

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from pickle import PickleBuffer
from weakref import ref

from vhostblk.blk.request import Buffer
from vhostblk.engine.api import Piece
from vhostblk.memory.regions import RegionTable
from vhostblk.memory.space import Access, AddressSpace, Denied, Missing, Segment

_FOR_READING = 0x100  # PyBUF_READ
_FOR_WRITING = 0x200  # PyBUF_WRITE

_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_view.restype = ctypes.py_object


def copy_in(host: int, length: int) -> bytes:
    """Return *length* bytes from *host* on, copied once."""
    return ctypes.string_at(host, length)


def copy_out(host: int, data: bytes) -> None:
    """Store *data* from *host* on."""
    ctypes.memmove(host, data, len(data))


def load16(host: int) -> int:
    """Return the 16-bit field at *host*, which is even."""
    return ctypes.c_uint16.from_address(host).value


def store16(host: int, value: int) -> None:
    """Set the 16-bit field at *host*, which is even, in one store."""
    ctypes.c_uint16.from_address(host).value = value & 0xFFFF


def view(host: int, length: int, *, writable: bool) -> tuple[memoryview, ref[object]]:
    """
    Return guest memory as bytes, without a copy.

    Args:
        host: First byte.  Nothing keeps it mapped: whoever unmaps it waits for the view to die.
        length: Bytes.
        writable: The disk may write there.

    Returns:
        The view, and what is dead when nobody holds it or a slice of it (`Job.release`).
    """
    made: memoryview = _view(host, length, _FOR_WRITING if writable else _FOR_READING)
    # Through PickleBuffer the new view exports *made* instead of the address below it, so that
    # *made* lives as long as every slice does.
    return memoryview(PickleBuffer(made)), ref(made)


class GuestMemory:
    """
    What the driver's addresses mean.

    Args:
        segments: Sorted, disjoint.
        asks: What is in none of them is asked for.
    """

    def __init__(self, segments: Sequence[Segment] = (), *, asks: bool = False) -> None:
        self._space = AddressSpace(tuple(segments), RegionTable(), asks=asks)
        self.denied: list[tuple[int, int]] = []
        """(IOVA, bytes) that were asked for in vain, for the chain that waits."""

    def with_segments(self, segments: Sequence[Segment]) -> "GuestMemory":
        """Return the same with other segments."""
        made = GuestMemory(segments, asks=self._space.asks)
        made.denied = self.denied
        return made

    def asking(self, *, asks: bool) -> "GuestMemory":
        """Return the same segments, with what is in none of them asked for or denied."""
        return GuestMemory(self._space.segments, asks=asks)

    def locate(self, part: Buffer) -> list[Buffer]:
        """
        Find where one descriptor's buffer lives.

        Returns:
            Buffers at addresses of this process, in order; none for an empty one.

        Raises:
            Missing: A byte of it must be asked for.
            Denied: A byte of it is not mapped, or not for this direction.
        """
        return [Buffer(one.host, one.length, part.writable) for one in self.find(part)]

    def find(self, part: Buffer) -> list[Segment]:
        """
        Find what gives one descriptor's buffer.

        Returns:
            The parts of segments it is in, in order; none for an empty one.

        Raises:
            Missing: A byte of it must be asked for.
            Denied: A byte of it is not mapped, or not for this direction.
        """
        if part.length == 0:
            return []
        access = Access.WRITE if part.writable else Access.READ
        try:
            return self._space.translate(part.address, part.length, access)
        except Missing as missing:
            if any(iova <= missing.iova < iova + length for iova, length in self.denied):
                raise Denied(missing.iova, access) from None
            raise


class Part:
    """
    A part of a ring, which may lie in several pieces of memory.

    Args:
        pieces: In order; no border splits an element (`AddressSpace.ring_pieces`).
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        lengths = [length for _, length in pieces]
        ends = accumulate(lengths)
        self._rows = [
            (end - length, end, host) for (host, length), end in zip(pieces, ends, strict=True)
        ]
        self.length = sum(lengths)

    def at(self, offset: int) -> int:
        """Return where byte *offset* of the part lives."""
        for start, end, host in self._rows:
            if offset < end:
                return host + offset - start
        raise IndexError(offset)
