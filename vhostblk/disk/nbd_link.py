"""
One connection to an NBD server, on an event loop: commands go out, and each is a future.

When the connection is lost every command that is under way ends with `LostError`; what becomes
of them is the disk's, in `nbd`.
"""

import asyncio
import errno
from collections.abc import Callable
from contextlib import suppress

from vhostblk.disk import libnbd


class LostError(Exception):
    """The connection ended before the answer came: the server may have done it, or not."""


class Link:
    """
    A connection that is ready, from now on the loop's.

    Args:
        handle: The connection; closed by this.
        on_lost: Called once when it has ended by itself, not by `close`.
    """

    def __init__(self, handle: libnbd.Handle, on_lost: Callable[[], None]) -> None:
        self._handle = handle
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[asyncio.Future[None], object]] = {}
        self._open = True
        self._writer = False
        self._fd = handle.call("aio_get_fd")
        self._loop.add_reader(self._fd, self._ready, libnbd.READ)

    def ask(self, name: str, *args: object, keep: object = None) -> "asyncio.Future[None]":
        """
        Send a command.

        Args:
            name: A function of libnbd that returns a command's number.
            args: For it.
            keep: Lives until the command is over: the memory that *args* point to.

        Returns:
            Ends with the command; an `OSError` is the server's answer, or it is `LostError`.

        Raises:
            OSError: Not sent: the library knows better.
            LostError: Not sent.
        """
        if not self._open:
            raise LostError
        try:
            number = self._handle.call(name, *args)
        except OSError:
            self._look()
            if not self._open:
                raise LostError from None
            raise
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting[number] = future, keep
        self._look()  # it may be gone, or sent in part
        return future

    def close(self) -> None:
        """End it; what is under way is lost."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._handle.close()
        for future, _ in self._waiting.values():
            future.set_exception(LostError())
        self._waiting.clear()

    def _ready(self, direction: int) -> None:
        # What was wanted when the loop looked may have been done meanwhile.
        if self._handle.call("aio_get_direction") & direction:
            name = "aio_notify_read" if direction == libnbd.READ else "aio_notify_write"
            with suppress(OSError):  # it is gone then, which is looked at next
                self._handle.call(name)
        self._look()

    def _look(self) -> None:
        """See what is over, and what the library waits for now."""
        gone = self._handle.is_gone
        while number := self._handle.completed():
            gone = self._end(number, gone=gone)
        if gone:
            self.close()
            self._on_lost()
            return
        writes = bool(self._handle.call("aio_get_direction") & libnbd.WRITE)
        if writes and not self._writer:
            self._loop.add_writer(self._fd, self._ready, libnbd.WRITE)
        elif self._writer and not writes:
            self._loop.remove_writer(self._fd)
        self._writer = writes

    def _end(self, number: int, *, gone: bool) -> bool:
        """Tell how a command has ended; return whether the connection is of use no more."""
        future, _ = self._waiting.pop(number)
        try:
            self._handle.call("aio_command_completed", number)
        except OSError as error:
            # Of a connection that has ended every command fails, whatever the server has done.  A
            # server that is told to end says so, and does none of what comes then.
            gone = gone or error.errno == errno.ESHUTDOWN
            future.set_exception(LostError() if gone else error)
        else:
            future.set_result(None)
        return gone
