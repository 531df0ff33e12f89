"""A thread that takes away what the C core has recorded, for layers that record."""

import os
import select
import threading
from collections.abc import Callable

PERIOD = 0.1
"""Seconds that a record waits at most."""


class Taker:
    """
    Calls *take* when enough waits, once in a period, and when it is closed.

    Args:
        name: Of the thread.
        wake_fd: Readable when enough waits; *take* makes it unreadable.
        take: Takes all there is; on one thread at a time.
        period: Seconds.
    """

    def __init__(
        self, name: str, wake_fd: int, take: Callable[[], None], *, period: float = PERIOD
    ) -> None:
        self._wake_fd = wake_fd
        self._take = take
        self._period = period
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the rest, and end; nothing waits for the period."""
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        os.close(self._stop_fd)
        self._take()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        while self._stop_fd not in dict(poll.poll(self._period * 1000)):
            self._take()
