"""
A process that was killed, of which I/O is still under way.

To the kernel that is a reference to the open file which no process has any more.  Here it is in a
message that nobody has read.
"""

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_PIDFD_GETFD = 438
"""<asm-generic/unistd.h>: there is none in Python's os."""
PATIENCE_S = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


def _copy(pid: int, number: int) -> int:
    watch = os.pidfd_open(pid)
    try:
        fd: int = _libc.syscall(_PIDFD_GETFD, watch, number, 0)
    finally:
        os.close(watch)
    if fd < 0:
        pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    return fd


def _number(process: subprocess.Popen[str], image: Path) -> int:
    """Return a server's descriptor of its image, as soon as it has one."""
    for _ in range(int(PATIENCE_S * 1000)):
        assert process.poll() is None, process.communicate()[1]
        for one in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):
                if one.readlink() == image:
                    return int(one.name)
        time.sleep(0.001)
    raise AssertionError("it never opens its image")


def wait_until_open(process: subprocess.Popen[str], image: Path) -> None:
    """Return when a server has its image open, and may wait for its lock."""
    _number(process, image)


class UnderWay:
    """Somebody's open file, kept without a process."""

    def __init__(self, fd: int) -> None:
        self._sockets = socket.socketpair()
        socket.send_fds(self._sockets[0], [b"x"], [fd])
        os.close(fd)

    def end(self) -> None:
        """Let it go; again is harmless."""
        for one in self._sockets:
            one.close()


@contextmanager
def killed(process: subprocess.Popen[str], image: Path) -> Iterator[UnderWay]:
    """Kill a server, and have I/O on its open *image* under way until it is told to end."""
    under_way = UnderWay(_copy(process.pid, _number(process, image)))
    try:
        process.kill()
        process.wait()
        yield under_way
    finally:
        under_way.end()
