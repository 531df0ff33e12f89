"""
The dirty log: a bitmap in shared memory in which the device notes the pages it has written.

Bits are taken away one by one, each in one atomic operation, so that a bit that is set meanwhile
stays.  Python has no such operation; the kernel has one for everybody, FUTEX_WAKE_OP, which changes
a word and then wakes nobody.

Spec: vhost-user, "Migration".
"""

import ctypes
import mmap
import os
import platform
import re

from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE
from vhostblk.guest.mapping import make_memfd
from vhostblk.guest.memory import GuestMemory

_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_FUTEX_WAKE_OP = 5
_ANDN_BIT = 3 | 8
"""FUTEX_OP_ANDN, of 1 << the argument."""
_WORD = 4
_libc = ctypes.CDLL(None, use_errno=True)


class DirtyLog:
    """
    A log for all of a guest's memory; close it.

    Args:
        memory: The guest's.
    """

    def __init__(self, memory: GuestMemory) -> None:
        pages = memory.mappings[-1].region.end // PAGE
        self.size = 8 * (pages // 64 + 1)
        """Bytes, as QEMU reckons them."""
        self.fd = make_memfd(self.size, hugetlb=False)
        """What SET_LOG_BASE carries."""
        self._map = mmap.mmap(self.fd, self.size)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        os.close(self.fd)

    def peek(self) -> list[int]:
        """Return the GPAs of all pages that are marked, in order."""
        return [
            PAGE * (8 * found.start() + bit)
            for found in re.finditer(rb"[^\0]", self._map[:], re.DOTALL)
            for bit in range(8)
            if found[0][0] >> bit & 1
        ]

    def clear(self, pages: list[int]) -> None:
        """
        Take away the marks of *pages* and of no others.

        Raises:
            GuestError: The kernel cannot.
        """
        number = _SYS_FUTEX.get(platform.machine())
        if number is None:
            raise GuestError(f"no dirty log on {platform.machine()}")
        for page in pages:
            word, bit = divmod(page // PAGE, 8 * _WORD)
            at = ctypes.c_void_p(self._address + word * _WORD)
            change = ctypes.c_int(ctypes.c_int32(_ANDN_BIT << 28 | bit << 12).value)
            if _libc.syscall(number, at, _FUTEX_WAKE_OP, 0, None, at, change) < 0:
                raise GuestError(f"FUTEX_WAKE_OP: {os.strerror(ctypes.get_errno())}")

    def take(self) -> list[int]:
        """Return the GPAs of the pages that are marked, and take their marks away."""
        pages = self.peek()
        self.clear(pages)
        return pages
