"""Waiting for a descriptor on the running loop, until somebody says that it is over."""

import asyncio
from collections.abc import Callable


class Brake:
    """
    Holds a loop at the one place where it passes by, with nothing half done.

    Args:
        nudge: Makes the loop come by soon, should it wait for something.
    """

    def __init__(self, nudge: Callable[[], None]) -> None:
        self._nudge = nudge
        self._here = asyncio.Event()
        self._go = asyncio.Event()
        self._go.set()

    async def passed(self) -> None:
        """Return at once, or when the brake is let go."""
        while not self._go.is_set():
            self._here.set()
            await self._go.wait()

    async def hold(self) -> None:
        """Return when the loop stands here, where it stays until `let_go`."""
        self._here.clear()
        self.shut()
        self._nudge()
        await self._here.wait()

    def shut(self) -> None:
        """Let nobody pass; who is under way comes here in its time."""
        self._go.clear()

    def let_go(self) -> None:
        """Let it go on."""
        self._go.set()


class Gate:
    """
    One descriptor, one waiter.

    Args:
        fd: Non-blocking; stays the caller's, who stops the gate before closing it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._waiter: asyncio.Future[None] | None = None
        self.stopped = False

    async def readable(self) -> None:
        """Return when there is something to read, or after `stop`."""
        if self.stopped:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        loop.add_reader(self._fd, _wake, self._waiter)
        try:
            await self._waiter
        finally:
            self._waiter = None
            # Already gone after `stop`; the number may be somebody else's by now.
            if not self.stopped:
                loop.remove_reader(self._fd)

    async def writable(self) -> None:
        """Return when there is room to write, or after `stop`."""
        if self.stopped:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        loop.add_writer(self._fd, _wake, self._waiter)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if not self.stopped:
                loop.remove_writer(self._fd)

    def nudge(self) -> None:
        """Let the waiter go; it may wait again."""
        if self._waiter is not None:
            _wake(self._waiter)

    def stop(self) -> None:
        """Let the waiter go, now and for good; the descriptor may be closed."""
        if self._waiter is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
            _wake(self._waiter)
        self.stopped = True


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
