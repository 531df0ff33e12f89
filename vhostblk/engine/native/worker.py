"""A thread inside ``vhb_worker_run`` and the events of its queues."""

import asyncio
import logging
import os
import threading
from typing import Any, Protocol

from vhostblk.engine.native.core import ffi, lib, make

_log = logging.getLogger(__name__)

SPIN_US = 50
"""Microseconds a worker looks on after the last request before it sleeps."""


class EventTaker(Protocol):
    """A queue, as its worker knows it."""

    handle: Any

    def on_events(self, events: int) -> None:
        """Hand out what the worker posted; on the control thread."""
        ...


class Worker:
    """
    A worker of the core.

    Args:
        index: For the thread's name.
        loop: Where its events are handed out.
        threaded: Work on a thread of its own; without it only ``vhb_worker_step`` works.
    """

    def __init__(self, index: int, loop: asyncio.AbstractEventLoop, *, threaded: bool) -> None:
        config = ffi.new("struct vhb_worker_config *", {"spin_us": SPIN_US})
        self.handle = make("worker", lib.vhb_worker_new, config)
        self.queues: set[EventTaker] = set()
        self._loop = loop
        self._event_fd: int = lib.vhb_worker_event_fd(self.handle)
        uring = lib.vhb_worker_uring(self.handle)
        if uring < 0:
            _log.warning(
                "io_uring is refused (%s): serving with preadv/pwritev", os.strerror(-uring)
            )
        loop.add_reader(self._event_fd, self._on_events)
        self._thread = threading.Thread(target=self._run, name=f"vhb-worker-{index}", daemon=True)
        if threaded:
            self._thread.start()

    def _run(self) -> None:
        result = lib.vhb_worker_run(self.handle)
        if result < 0:
            _log.critical("a worker cannot work: %s", os.strerror(-result))

    def _on_events(self) -> None:
        os.read(self._event_fd, 8)
        for queue in tuple(self.queues):
            queue.on_events(lib.vhb_queue_take_events(queue.handle))

    async def close(self) -> None:
        """End the thread; a worker whose disk never answered is left to the process's end."""
        self._loop.remove_reader(self._event_fd)
        lib.vhb_worker_stop(self.handle)
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        if lib.vhb_worker_free(self.handle) < 0:
            _log.error("a disk still holds requests: its worker cannot be freed")
