"""
Requests that take long: one line for each while it does, and one when it is over.

Looked for about once a second, but only while something is under way: an idle device wakes nobody.
"""

import asyncio
from collections.abc import Callable
from logging import WARNING
from typing import TypeAlias

from vhostblk.engine.api import Queue, Slow
from vhostblk.server.log import Log, Told

SLOW_SECONDS = 10.0
"""From when on a request is slow, unless the operator says otherwise; no storage is meant to be."""
LOOK_SECONDS = 1.0

_Name: TypeAlias = tuple[int, int, int]
"""Queue, tag and beginning of a request."""


class SlowWatch:
    """
    Looks for slow requests on the queues of one device.

    Args:
        seconds: From when on a request is slow; 0: nobody looks.
        log: Its log.
        clock: Seconds that only grow.
    """

    def __init__(self, seconds: float, log: Log, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._log = log
        self._queues: dict[int, Queue] = {}
        self._told: dict[_Name, Slow] = {}
        self._lines = Told(log, clock=clock)
        self._timer: asyncio.TimerHandle | None = None
        self._idle = False

    def watch(self, index: int, queue: Queue) -> None:
        """Look at a queue that was made just now."""
        if self._seconds:
            self._queues[index] = queue
            queue.watch_busy(self._busy)

    def forget(self, queue: Queue) -> None:
        """Drop a queue that is about to be closed; nothing of it is under way."""
        for index in [index for index, one in self._queues.items() if one is queue]:
            del self._queues[index]
            for name in [name for name in self._told if name[0] == index]:
                self._over(name)
        if not self._queues and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _busy(self) -> None:
        self._idle = False
        if self._timer is None:
            self._wait()

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(LOOK_SECONDS, self._seconds / 2), self._look)

    def _look(self) -> None:
        self._timer = None
        for index, queue in self._queues.items():
            self._look_at(index, queue)
        was_idle, self._idle = (
            self._idle,
            not any(queue.counters().in_flight for queue in self._queues.values()),
        )
        # A request that was taken while we asked to be told may have been missed: so we look once
        # more before we stop.
        if self._idle and not was_idle:
            for queue in self._queues.values():
                queue.watch_busy(self._busy)
        if not (self._idle and was_idle):
            self._wait()

    def _look_at(self, index: int, queue: Queue) -> None:
        slow = {(index, one.tag, one.since_ns): one for one in queue.slow(self._seconds)}
        for name in [name for name in self._told if name[0] == index and name not in slow]:
            self._over(name)
        if queue.stall() is not None:
            return  # which has a line of its own
        for name, one in slow.items():
            if name in self._told or self._lines.tell(
                WARNING, "queue %d: %s is not done after %.1f s", index, text(one), one.age
            ):
                self._told[name] = one

    def _over(self, name: _Name) -> None:
        one = self._told.pop(name)
        self._log.warning("queue %d: %s is over, after about %.0f s", name[0], text(one), one.age)


def text(one: Slow) -> str:
    """Say what a request is."""
    return f"{one.op.name} of {one.length} bytes at {one.offset}"
