"""
A connected socket: exact reads, whole writes, file descriptors along with both.

Never more than was asked for is read: an over-long ``recvmsg`` once returned the bytes of three
sends together with the one descriptor of the last.  asyncio's streams would lose descriptors.
"""

import array
import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vhostblk.errors import ProtocolError
from vhostblk.server.gate import Brake, Gate

MAX_FDS = 253
"""SCM_MAX_FD of the kernel: with room for as many, none is ever cut off."""

_INT = array.array("i").itemsize
_ANCILLARY = socket.CMSG_SPACE(MAX_FDS * _INT)


class Transport:
    """
    One front-end's socket.

    Args:
        sock: Connected, of type SOCK_STREAM; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._gate = Gate(sock.fileno())
        self._watching = False
        self.brake = Brake(self._gate.nudge)
        """Where nothing is being read: what has come is with whoever called `receive`."""

    def fileno(self) -> int:
        """Return the socket's descriptor, which stays here."""
        return self._sock.fileno()

    async def receive(self, want: int) -> tuple[bytes, list[int]]:
        """
        Read what has come, at most *want* bytes.

        Args:
            want: Bytes, at least 1.

        Returns:
            Bytes and descriptors, which are the caller's; no bytes at the end of the stream, be
            it the front-end's doing or that of `stop`.

        Raises:
            ProtocolError: Descriptors were lost.
        """
        while True:
            await self.brake.passed()
            if self._gate.stopped:
                break
            try:
                return self._recvmsg(want)
            except BlockingIOError:
                await self._gate.readable()
            except ConnectionError:
                break
        return b"", []

    def _recvmsg(self, want: int) -> tuple[bytes, list[int]]:
        data, ancillary, flags, _ = self._sock.recvmsg(want, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % _INT])
        if flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise ProtocolError("file descriptors of a message were lost: raise ulimit -n")
        return data, list(fds)

    @contextmanager
    def watched(self, gone: Callable[[], None]) -> Iterator[None]:
        """
        Call *gone* if the front-end hangs up meanwhile, while nobody reads.

        One that has sent more before is not noticed: that is read first, in its time.
        """
        if not self._gate.stopped:
            asyncio.get_running_loop().add_reader(self._sock.fileno(), self._look, gone)
            self._watching = True
        try:
            yield
        finally:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._watching:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._watching = False

    def _look(self, gone: Callable[[], None]) -> None:
        self._unwatch()
        try:
            there = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except ConnectionError:
            there = b""
        if not there:
            gone()

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """
        Write all of *data*; the descriptors go with its first byte and stay the caller's.

        Raises:
            ConnectionError: The front-end is gone, or we were told to `stop`.
        """
        rest = memoryview(data)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while rest:
            try:
                sent = self._sock.sendmsg([rest], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await self._gate.writable()
                if self._gate.stopped:
                    raise ConnectionAbortedError("stopped with a reply half sent") from None
                continue
            rest = rest[sent:]
            ancillary = []

    def stop(self) -> None:
        """Read nothing more: a `receive` that waits returns the end of the stream."""
        self._gate.stop()
        self.brake.let_go()

    def close(self) -> None:
        """Hang up; calling again does nothing."""
        self._gate.stop()
        self._unwatch()
        self._sock.close()
