"""
Userfaultfd, as far as it takes to see which pages of shared memory a process touches.

A descriptor belongs to the process that made it: faults in its memory are read from the descriptor
by whoever holds it.  Three kinds are of use here: MISSING (nobody had this page), MINOR (the page
is there, this process had not touched it) and WP (it reads the page and now writes).  They come
from CPUs and from the kernel's own copying alike, if the descriptor comes from /dev/userfaultfd.

Source: <linux/userfaultfd.h>; Linux, Documentation/admin-guide/mm/userfaultfd.rst.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE

DEVICE = "/dev/userfaultfd"
_NEW = 0xAA00  # USERFAULTFD_IOC_NEW: _IO(0xAA, 0)
_API = 0xC018AA3F  # UFFDIO_API: _IOWR(0xAA, 0x3F, 24 bytes)
_REGISTER = 0xC020AA00  # UFFDIO_REGISTER: _IOWR(0xAA, 0, 32 bytes)
_WRITEPROTECT = 0xC018AA06  # UFFDIO_WRITEPROTECT: _IOWR(0xAA, 6, 24 bytes)
_CONTINUE = 0xC020AA07  # UFFDIO_CONTINUE: _IOWR(0xAA, 7, 32 bytes)
_VERSION = 0xAA
_PAGEFAULT_FLAG_WP, _MISSING_SHMEM = 1 << 0, 1 << 5
_MINOR_SHMEM, _WP_SHMEM = 1 << 10, 1 << 12
_MODES = 1 | 2 | 4  # MISSING, WP, MINOR
_CONTINUE_MODE_WP = 2
_EVENT_PAGEFAULT = 0x12
_FLAG_WRITE, _FLAG_WP = 1, 2
_MESSAGE = struct.Struct("<BBHIQQQ")  # event, padding; flags, address, thread
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Fault:
    """
    A touch that waits.

    Args:
        address: Of the page, in the process.
        write: It is a store.
        protected: The page was read before, and is there.
    """

    address: int
    write: bool
    protected: bool


def make() -> int:
    """
    Make a descriptor for the faults of this process.

    Returns:
        The descriptor, non-blocking, the caller's.

    Raises:
        GuestError: The kernel is too old (Linux 6.4), or there is no right to it.
    """
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise GuestError(f"{DEVICE} cannot be opened ({error.strerror}): needs root") from error
    try:
        made: int = fcntl.ioctl(device, _NEW, os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise GuestError(f"{DEVICE} makes no userfaultfd: {error.strerror}") from error
    finally:
        os.close(device)
    wanted = _PAGEFAULT_FLAG_WP | _MISSING_SHMEM | _MINOR_SHMEM | _WP_SHMEM
    try:
        fcntl.ioctl(made, _API, struct.pack("<QQQ", _VERSION, wanted, 0))
    except OSError as error:
        os.close(made)
        raise GuestError(f"this kernel cannot watch shared memory: {error.strerror}") from error
    return made


def register(fd: int, address: int, length: int) -> None:
    """
    Watch a mapping of this process.

    Args:
        fd: Of `make`.
        address: Its first byte, at a page.
        length: Bytes, whole pages; shared, of a memfd with ordinary pages.

    Raises:
        GuestError: It is something else.
    """
    try:
        fcntl.ioctl(fd, _REGISTER, struct.pack("<QQQQ", address, length, _MODES, 0))
    except OSError as error:
        raise GuestError(f"this memory cannot be watched: {error.strerror}") from error


def take(fd: int) -> Iterator[Fault]:
    """Yield the faults that wait to be let pass."""
    try:
        raw = os.read(fd, _MESSAGE.size * _AT_ONCE)
    except BlockingIOError:
        return
    for event, _, _, _, flags, address, _ in _MESSAGE.iter_unpack(raw):
        if event == _EVENT_PAGEFAULT:
            write = bool(flags & (_FLAG_WRITE | _FLAG_WP))
            yield Fault(address - address % PAGE, write, bool(flags & _FLAG_WP))


def let_pass(fd: int, fault: Fault, memory: int, offset: int) -> None:
    """
    Give the process its page; one that it reads is watched for a later write.

    Args:
        fd: Where *fault* was taken.
        fault: What waits.
        memory: A descriptor of the memfd behind the mapping.
        offset: Of the page in it.
    """
    if fault.protected:
        _tell(fd, _WRITEPROTECT, struct.pack("<QQQ", fault.address, PAGE, 0))
        return
    mode = 0 if fault.write else _CONTINUE_MODE_WP
    argument = struct.pack("<QQQq", fault.address, PAGE, mode, 0)
    # A page that is missing is made as a first touch makes it: zero, unless somebody was faster.
    # Again, where the guest has taken it away meanwhile.
    os.posix_fallocate(memory, offset, PAGE)
    while not _tell(fd, _CONTINUE, argument):
        os.posix_fallocate(memory, offset, PAGE)


def _tell(fd: int, request: int, argument: bytes) -> bool:
    """Return whether that was all: False to try again."""
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        if error.errno in {errno.EFAULT, errno.EAGAIN}:
            return False
        # EEXIST: another thread's fault on the same page came first.  ENOENT, ESRCH: it was
        # unmapped, or the process is gone.
        if error.errno not in {errno.EEXIST, errno.ENOENT, errno.ESRCH}:
            raise
    return True
