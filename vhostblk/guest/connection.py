"""
A Unix stream socket that carries whole messages with descriptors, and never blocks for ever.

Both sockets of vhost-user use it: the main one and the back-end's own channel.
"""

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from vhostblk.guest import wire
from vhostblk.guest.deadline import Deadline
from vhostblk.guest.errors import DeadlineError, DisconnectedError, GuestError
from vhostblk.spec import vhost_user as vu

_CREDENTIALS = struct.Struct("iII")
"""Source: Linux, struct ucred: process, user, group."""
_ANCILLARY = socket.CMSG_SPACE(vu.MAX_FDS * array.array("i").itemsize) + socket.CMSG_SPACE(
    _CREDENTIALS.size
)


class Connection:
    """
    Messages over a socket, which it owns.

    Args:
        sock: Connected, AF_UNIX, SOCK_STREAM.
        timeout: Seconds each message may take.
    """

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        self._sock = sock
        self.timeout = timeout
        self.sender: int | None = None
        """Process that sent what came last, after ``identify``; 0: one that cannot be told here."""

    @classmethod
    def connect(cls, path: str | Path, timeout: float) -> "Connection":
        """
        Connect to a listening socket.

        Args:
            path: Where it is.
            timeout: Seconds for this and for each message.

        Returns:
            The connection.

        Raises:
            DisconnectedError: Nobody listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            why = error.strerror or error
            raise DisconnectedError(f"cannot connect to {path}: {why}") from error
        return cls(sock, timeout)

    def fileno(self) -> int:
        """Return the descriptor, for poll()."""
        return self._sock.fileno()

    def identify(self) -> None:
        """
        Have ``sender`` kept from now on.

        Who made a listening socket, SO_PEERCRED would tell: a service manager, or a process that
        is long gone and was succeeded.
        """
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def close(self) -> None:
        """Close the socket; again is harmless."""
        self._sock.close()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """
        Send bytes as they are; the descriptors go with the first of them.

        Args:
            data: At least one byte.
            fds: Stay the caller's.

        Raises:
            DisconnectedError: The other side is gone.
            DeadlineError: It does not read.
        """
        with self._errors(f"the back-end to read {len(data)} bytes"):
            sent = self._send_fds(data, fds)
            self._sock.settimeout(self.timeout)
            self._sock.sendall(data[sent:])

    def receive(self, what: str, timeout: float | None = None) -> wire.Message:
        """
        Receive one message.

        Args:
            what: Completes "timed out waiting for …".
            timeout: Seconds; ``None`` for the connection's.

        Returns:
            The message; its descriptors are the caller's to close.

        Raises:
            DisconnectedError: The other side closed before the whole message.
            DeadlineError: It did not come in time.
            GuestError: Its size is nobody's.
        """
        deadline = Deadline.after(self.timeout if timeout is None else timeout, what)
        fds: list[int] = []
        try:
            request, flags, size = wire.HEADER.unpack(self._exactly(vu.HEADER_SIZE, deadline, fds))
            _check_size(size, what)
            return wire.Message(request, flags, self._exactly(size, deadline, fds), tuple(fds))
        except BaseException:
            close_all(fds)
            raise

    def expect_close(self, timeout: float | None = None) -> None:
        """
        Wait until the other side closes, reading and dropping what it still sends.

        Args:
            timeout: Seconds; ``None`` for the connection's.

        Raises:
            DeadlineError: It stays open.
        """
        deadline = Deadline.after(
            self.timeout if timeout is None else timeout, "the back-end to close the connection"
        )
        fds: list[int] = []
        try:
            while True:
                self._exactly(1, deadline, fds)
        except DisconnectedError:
            return
        finally:
            close_all(fds)

    def _send_fds(self, data: bytes, fds: Sequence[int]) -> int:
        if not fds:
            return 0
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self._sock.settimeout(self.timeout)
        return self._sock.sendmsg([data], rights)

    def _exactly(self, size: int, deadline: Deadline, fds: list[int]) -> bytes:
        data = b""
        while len(data) < size:
            with self._errors(deadline.what):
                self._sock.settimeout(deadline.left())
                piece, ancillary, _, _ = self._sock.recvmsg(
                    size - len(data), _ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            for level, kind, rights in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.extend(array.array("i", rights))
                elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                    self.sender = _CREDENTIALS.unpack(rights)[0]
            if not piece:
                raise DisconnectedError(f"connection closed while waiting for {deadline.what}")
            data += piece
        return data

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise DeadlineError(f"timed out waiting for {what}") from error
        except OSError as error:
            raise DisconnectedError(f"connection lost while waiting for {what}: {error}") from error


def _check_size(size: int, what: str) -> None:
    if size > vu.MAX_PAYLOAD:
        raise GuestError(f"a message of {size} bytes while waiting for {what}")


def close_all(fds: Sequence[int]) -> None:
    """Close every one of *fds*."""
    for fd in fds:
        os.close(fd)
