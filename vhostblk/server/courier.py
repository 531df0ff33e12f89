"""
Documents and descriptors between two processes, over a Unix stream socket.

Each document is its length and its number of descriptors, its text, and the descriptors in batches,
each with a byte of its own: the kernel takes 253 at once.  Blocking, with a bound on each wait; an
event loop leaves it to a thread.
"""

import array
import os
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self, TypeVar

from vhostblk.errors import VhostBlkError
from vhostblk.server.document import decode, encode, renumber

BATCH = 253
"""SCM_MAX_FD of the kernel."""
MAX_TEXT = 16 << 20
MAX_FDS = 1 << 16
_HEAD = struct.Struct("=II")
_INT = array.array("i").itemsize
_T = TypeVar("_T")


class Gone(VhostBlkError):  # noqa: N818 - a state
    """The other process has hung up."""


class Courier:
    """
    One end.

    Args:
        sock: Connected; owned.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def pair(cls) -> tuple[Self, socket.socket]:
        """Return an end, and the socket of the other."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    def send(self, document: object, *, seconds: float) -> None:
        """
        Send one of `vhostblk.server.handover`'s values with its descriptors, which stay ours.

        Raises:
            Gone: Nobody is there to take it.
            TimeoutError: It was not taken in time.
        """
        fds: list[int] = []

        def place(fd: int) -> int:
            fds.append(fd)
            return len(fds) - 1

        text = encode(renumber(document, place))
        self._sock.settimeout(seconds)
        try:
            self._sock.sendall(_HEAD.pack(len(text), len(fds)) + text)
            for at in range(0, len(fds), BATCH):
                socket.send_fds(self._sock, [b"."], fds[at : at + BATCH])
        except ConnectionError as error:
            raise Gone("it has hung up") from error

    def receive(self, kind: type[_T], *, seconds: float) -> _T:
        """
        Return the next document, which has to be a *kind*; its descriptors are the caller's.

        Raises:
            Gone: None will come.
            TimeoutError: It did not come in time.
            VhostBlkError: It is something else.
        """
        deadline = time.monotonic() + seconds
        fds: list[int] = []
        try:
            length, count = self._head(deadline)
            text = self._exactly(length, deadline)
            while len(fds) < count:
                fds += self._batch(min(count - len(fds), BATCH), deadline)
            return renumber(decode(kind, text), lambda at: _at(fds, at))
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def _head(self, deadline: float) -> tuple[int, int]:
        length, count = _HEAD.unpack(self._exactly(_HEAD.size, deadline))
        if length > MAX_TEXT or count > MAX_FDS:
            raise VhostBlkError(f"a state document of {length} bytes with {count} descriptors")
        return length, count

    def _exactly(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            self._wait(deadline)
            try:
                piece = self._sock.recv(size - len(data))
            except ConnectionError as error:
                raise Gone("it has hung up") from error
            if not piece:
                raise Gone("it has hung up")
            data += piece
        return data

    def _batch(self, count: int, deadline: float) -> list[int]:
        self._wait(deadline)
        room = socket.CMSG_SPACE(count * _INT)
        data, ancillary, flags, _ = self._sock.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % _INT])
        if not data or flags & socket.MSG_CTRUNC or len(fds) != count:
            for fd in fds:
                os.close(fd)
            raise VhostBlkError("file descriptors were lost on the way: raise ulimit -n")
        return list(fds)

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)

    def hang_up(self) -> None:
        """End it, also for a thread that waits in it; calling again does nothing."""
        if self._sock.fileno() >= 0:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()


def _at(fds: Sequence[int], place: int) -> int:
    if not 0 <= place < len(fds):
        raise VhostBlkError(f"the state document names descriptor {place} of {len(fds)}")
    return fds[place]
