"""
Front-ends that listen themselves: QEMU with ``server=on`` on its chardev.

We connect, and connect again when a front-end goes; meanwhile we ask now and then whether somebody
listens.  What cannot work is said once, before the disk is opened, to whoever started us.  Later
nothing is final: who keeps the socket may come back, and the guest is still there.
"""

import asyncio
import errno
import os
import shlex
import socket
import stat
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeAlias

from vhostblk.errors import VhostBlkError
from vhostblk.server.gate import Brake
from vhostblk.server.handover import SourceState
from vhostblk.server.listener import check_length
from vhostblk.server.log import Log

FIRST_SECONDS = 0.01
LAST_SECONDS = 1.0
"""Between two tries: doubled from the first to the last, which a person hardly notices."""

Sleep: TypeAlias = Callable[[float], Coroutine[object, object, object]]


class Backoff:
    """
    How long to wait before the next try.

    A front-end that hangs up at once is a try like any other; one that stayed as long as we ever
    wait begins a new count.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = 0.0
        self._connected_at: float | None = None

    def connected(self) -> None:
        """Note that a try has succeeded."""
        self._connected_at = self._clock()

    def seconds(self) -> float:
        """Return how long to wait now."""
        since, self._connected_at = self._connected_at, None
        if since is not None and self._clock() - since >= LAST_SECONDS:
            self._next = 0.0
        wait = self._next
        self._next = min(max(2 * wait, FIRST_SECONDS), LAST_SECONDS)
        return wait


class Connector:
    """
    Gives one connection to *path* after the other.  Made by `connect`.

    Args:
        path: Where front-ends listen, one at a time.
        log: For who waits.
        clock: Seconds that only grow.
        sleep: Waits so many of them.
    """

    def __init__(
        self,
        path: Path,
        log: Log,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.path: Path | None = path
        """Where front-ends listen."""
        self._path = path
        self._log = log
        self._backoff = Backoff(clock)
        self._sleep = sleep
        self._told = ""
        self._closed = asyncio.Event()
        self._nudged = asyncio.Event()
        self.brake = Brake(self._nudged.set)
        """Where nobody is being connected to."""

    async def accept(self) -> socket.socket | None:
        """Return the next connection, however long that takes; None after `close`."""
        while True:
            await self._pause(self._backoff.seconds())
            await self.brake.passed()
            if self._closed.is_set():
                return None
            sock = self._try()
            if sock is not None:
                self._backoff.connected()
                self._told = ""
                return sock

    def share(self) -> SourceState:
        """Return what another process needs to go on in our place."""
        return SourceState(kind="connecting", path=os.fspath(self._path))

    def leave(self) -> None:
        """Connect no more: somebody else does."""
        self.close()

    def close(self) -> None:
        """Connect no more."""
        self._closed.set()
        self.brake.let_go()

    def _try(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # At once or not at all: there is no such thing as a slow Unix socket.
            sock.settimeout(0)
            sock.connect(os.fspath(self._path))
        except OSError as error:
            sock.close()
            self._tell(_state(self._path, error))
            return None
        self._log.info("connected to %s", self._path)
        return sock

    def _tell(self, why: str) -> None:
        """Say why we wait; again only when there is another reason."""
        if why != self._told:
            self._log.info("waiting for a front-end to listen on %s (%s)", self._path, why)
        self._told = why

    async def _pause(self, seconds: float) -> None:
        if not seconds:
            return
        ends = (self._closed.wait(), self._nudged.wait(), self._sleep(seconds))
        waits = {asyncio.ensure_future(one) for one in ends}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._nudged.clear()
            for one in waits:
                one.cancel()


def connect(path: Path, log: Log) -> Connector:
    """
    Get ready to connect to a socket path; nobody need listen there yet.

    Raises:
        VhostBlkError: It can never work; one line that says what to do.
    """
    check_length(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno == errno.ENOENT:
            return Connector(path, log)
        raise VhostBlkError(f"cannot connect to {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "no socket"
        raise VhostBlkError(f"cannot connect to {path}: it is {kind}: say where QEMU listens")
    if not os.access(path, os.W_OK, effective_ids=True):
        raise VhostBlkError(
            f"cannot connect to {path}: {os.strerror(errno.EACCES)}: make it writable for this "
            f"user, e.g. chown {os.geteuid()} {shlex.quote(os.fspath(path))}"
        )
    return Connector(path, log)


def _state(path: Path, error: OSError) -> str:
    """Say in a few words what is there instead of a front-end."""
    match error.errno:
        case errno.ENOENT if not path.parent.exists():
            return "its directory is not there"
        case errno.ENOENT:
            return "it is not there"
        case errno.ECONNREFUSED if not path.is_socket():
            return "what is there is no socket"
        case errno.ECONNREFUSED:
            return "nobody listens"
        case errno.EAGAIN:
            return "somebody else is connected"
        case _:
            return str(error.strerror)
