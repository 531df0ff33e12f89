"""
Where front-ends come from: a socket path, or a descriptor a manager opened for us.

A device has one front-end at a time.  The next one waits in the backlog: its ``connect`` and its
first messages succeed, and are answered once the one before it is gone.  A QEMU that reconnects at
once is not turned away, nor does it wait for what it has left in flight (`turn`).
"""

import errno
import os
import shlex
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from vhostblk.errors import VhostBlkError
from vhostblk.server.gate import Brake, Gate
from vhostblk.server.handover import SourceState

BACKLOG = 16
PATH_MAX = 107
"""Bytes of the longest socket path: sun_path less its NUL; unix(7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions:
    """
    Who may connect to a socket path.

    Args:
        mode: Permission bits.
        uid: Owner; None: who runs us.
        gid: Group; None: that of who runs us.
    """

    mode: int = 0o600
    uid: int | None = None
    gid: int | None = None


class Listener:
    """
    Gives one connection after the other.  Made by `listen` or `adopt`.

    Args:
        sock: Listening, or connected already; owned from here on.
        path: The name of our own socket file, removed at the end; None: not ours.
    """

    def __init__(self, sock: socket.socket, path: Path | None = None) -> None:
        sock.settimeout(0)
        self._sock = sock
        self._path = path
        self._file = _identity(path) if path else None
        self._listening = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        self._gate = Gate(sock.fileno())
        self.brake = Brake(self._gate.nudge)
        """Where no connection is being taken."""

    @property
    def path(self) -> Path | None:
        """The name of our own socket file; None: not ours, or removed."""
        return self._path

    async def accept(self) -> socket.socket | None:
        """
        Return the next connection; None when there will be no more.

        Raises:
            OSError: There is one and it cannot be had, for want of descriptors.
        """
        if not self._listening and not self._gate.stopped:
            # The one connection that was handed to us.
            self._gate.stop()
            return self._sock.dup()
        while True:
            await self.brake.passed()
            if self._gate.stopped:
                return None
            try:
                return self._sock.accept()[0]
            except BlockingIOError:
                await self._gate.readable()
            except ConnectionAbortedError:
                continue

    def share(self) -> SourceState:
        """Return what another process needs to go on in our place."""
        if not self._listening:
            return SourceState(kind="connected")
        path = None if self._path is None else os.fspath(self._path)
        return SourceState(kind="listening", path=path, fd=self._sock.fileno())

    def leave(self) -> None:
        """Take no more connections: somebody else does, and removes the socket file."""
        self._path = None
        self.close()

    def close(self) -> None:
        """Take no more connections and remove the socket file if it is still ours."""
        self._gate.stop()
        self.brake.let_go()
        self._sock.close()
        if self._path and self._file and _identity(self._path) == self._file:
            self._path.unlink()
        self._path = None


def listen(path: Path, options: SocketOptions) -> Listener:
    """
    Listen on a socket path; a dead socket that is there is replaced, a live one is not.

    Args:
        path: Where; its directory must exist.
        options: Who may connect.

    Raises:
        VhostBlkError: It cannot be had; one line that says what to do.
    """
    check_length(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind(sock, path, options)
        sock.listen(BACKLOG)
        return Listener(sock, path)
    except OSError as error:
        sock.close()
        raise VhostBlkError(f"cannot listen on {path}: {_why_not(path, error)}") from error
    except VhostBlkError:
        sock.close()
        raise


def check_length(path: Path) -> None:
    """
    Make sure that a socket can have this path.

    Raises:
        VhostBlkError: It is too long.
    """
    length = len(os.fsencode(path))
    if length > PATH_MAX:
        raise VhostBlkError(
            f"{path}: a socket path has {PATH_MAX} bytes at most, not {length}: "
            "choose a directory with a shorter name, like /run"
        )


def adopt(fd: int) -> Listener:
    """
    Take over a socket that a manager opened, listening or connected.

    Raises:
        VhostBlkError: The descriptor is not such a socket.
    """
    try:
        sock = socket.socket(fileno=fd)
        fits = (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise VhostBlkError(f"fd {fd} is not a socket: {error.strerror}") from error
    if not fits:
        sock.detach()
        raise VhostBlkError(f"fd {fd} is not a Unix stream socket")
    sock.set_inheritable(False)
    return Listener(sock)


def _why_not(path: Path, error: OSError) -> str:
    """Say what to do about a socket that cannot be had."""
    match error.errno:
        case errno.ENOENT:
            directory = shlex.quote(str(path.parent))
            return f"its directory is not there: mkdir -p {directory}, or choose another"
        case errno.EACCES | errno.EROFS:
            return f"{error.strerror}: choose a directory in which you may make files"
        case errno.EPERM:
            return f"{error.strerror}: only root may give a socket to somebody else"
        case _:
            return str(error.strerror)


def _bind(sock: socket.socket, path: Path, options: SocketOptions) -> None:
    try:
        _bind_private(sock, path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _remove_dead(path)
        _bind_private(sock, path)
    try:
        # Nobody can connect before listen(), so there is no moment of the wrong owner or mode.
        if options.uid is not None or options.gid is not None:
            os.chown(path, _id(options.uid), _id(options.gid))
        path.chmod(options.mode)
    except OSError:
        path.unlink()
        raise


def _id(number: int | None) -> int:
    return -1 if number is None else number


def _bind_private(sock: socket.socket, path: Path) -> None:
    before = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
    finally:
        os.umask(before)


def _remove_dead(path: Path) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        raise VhostBlkError(f"{path} is a directory: give the socket a name in it")
    if not stat.S_ISSOCK(mode):
        raise VhostBlkError(f"{path} exists and is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        error = probe.connect_ex(os.fspath(path))
    if error in (0, errno.EAGAIN):
        raise VhostBlkError(f"{path} is in use by another process: end it, or choose another path")
    if error not in (errno.ECONNREFUSED, errno.ENOENT):
        raise VhostBlkError(f"{path} is in the way ({os.strerror(error)}): choose another path")
    path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
