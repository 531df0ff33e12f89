"""What a back-end must not do to guest memory, one by one; negative controls for every proof."""

import ctypes
import mmap
import os
import struct

from guest_peers.rogue import Misdeed, Piece, View
from vhostblk.guest.layout import MIB, PAGE

_libc = ctypes.CDLL(None, use_errno=True)
_IO_URING_SETUP, _IO_URING_REGISTER, _REGISTER_BUFFERS = 425, 427, 0


def good(view: View, chain: list[Piece]) -> None:
    """Do nothing wrong."""


def next_page(view: View, chain: list[Piece]) -> None:
    """Read a byte of the page behind the last buffer's."""
    view.read(chain[-1].gpa - chain[-1].gpa % PAGE + PAGE, 1)


def far_read(view: View, _chain: list[Piece]) -> None:
    """Read a byte of memory that no request names."""
    view.read(12 * MIB, 1)


def far_write(view: View, _chain: list[Piece]) -> None:
    """Write a byte of memory that no request names."""
    view.write(12 * MIB, b"x")


def write_back(view: View, chain: list[Piece]) -> None:
    """Write what is there already into data that may only be read."""
    for piece in chain:
        if not piece.writable and piece.length >= PAGE:
            view.write(piece.gpa, view.read(piece.gpa, 1))


def populate(view: View, _chain: list[Piece]) -> None:
    """Have the kernel read all memory in advance."""
    for _, _, _, mapping in view.regions:
        mapping.madvise(22)  # MADV_POPULATE_READ


def register(view: View, _chain: list[Piece]) -> None:
    """Register all memory as buffers of an io_uring for a moment."""
    os.close(_ring_over(view))


def pin(view: View, _chain: list[Piece]) -> None:
    """Register all memory, and keep it so until this process ends."""
    _ring_over(view)


def _ring_over(view: View) -> int:
    parameters = ctypes.create_string_buffer(120)
    ring: int = _libc.syscall(_IO_URING_SETUP, 1, parameters)
    assert ring >= 0, os.strerror(ctypes.get_errno())
    for _, size, _, mapping in view.regions:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        iovec = struct.pack("<QQ", address, size)
        done = _libc.syscall(_IO_URING_REGISTER, ring, _REGISTER_BUFFERS, iovec, 1)
        assert done == 0, os.strerror(ctypes.get_errno())
    return ring


MISDEEDS: dict[str, Misdeed] = {
    one.__name__: one
    for one in (good, next_page, far_read, far_write, write_back, populate, register, pin)
}
MAP_POPULATE = 0x8000
MAP_FLAGS = {"map_populate": mmap.MAP_SHARED | MAP_POPULATE}
"""Flags of mmap with which memory is there before anybody asked for it."""
