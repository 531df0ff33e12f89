"""Whose a ring is, what is asked of who has it, and how that is told."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto


class Owner(Enum):
    """Whose the ring is."""

    CONTROL = auto()
    WORKER = auto()


class Ask(Enum):
    """What the control plane wants of the worker."""

    RUN = auto()
    PARK = auto()
    DRAIN = auto()
    CANCEL = auto()


class News:
    """
    What the worker tells the control plane.

    Args:
        loop: The control thread's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._next: asyncio.Future[None] | None = None

    def post(self, event: Callable[[], None]) -> None:
        """Worker: have *event* called on the control thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(event)

    def tell(self) -> None:
        """Worker: who waits looks again."""
        self.post(self._wake)

    def _wake(self) -> None:
        if self._next is not None:
            self._next.set_result(None)
        self._next = None

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait for the worker; what it says may be about something older, so look again."""
        while not done():
            if self._next is None:
                self._next = self._loop.create_future()
            await asyncio.shield(self._next)
