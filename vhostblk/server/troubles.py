"""
What a device's disk could not do: told of, and tried again when an operator has helped.

What the driver is told of is told here, too, a few times: a guest that goes on writing to a full
disk fills no log.  A Python disk's failures are told by its pump.
"""

import errno
import os
import time
from collections.abc import Callable
from functools import partial
from logging import WARNING

from vhostblk.engine.api import OnError, Queue, Stall
from vhostblk.server.log import Log, Told


class Troubles:
    """
    What goes wrong behind the queues of one device.

    Args:
        name: What an operator calls the device.
        policy: What becomes of a request that the disk fails.
        log: Its log.
        clock: Seconds that only grow.
    """

    def __init__(
        self, name: str, policy: OnError, log: Log, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._policy = policy
        self._log = log
        self._queues: dict[int, Queue] = {}
        self._told = Told(log, clock=clock)

    def watch(self, index: int, queue: Queue) -> None:
        """Set what becomes of errors on a queue that was made just now."""
        self._queues[index] = queue
        queue.set_on_error(
            self._policy,
            on_stalled=partial(self._stalled, index),
            on_failed=partial(self._failed, index) if queue.mailbox is None else None,
        )

    def forget(self, queue: Queue) -> None:
        """Drop a queue that is about to be closed."""
        self._queues = {index: one for index, one in self._queues.items() if one is not queue}

    def resume(self) -> int:
        """Have every stalled queue try again; return how many there were."""
        stalled = [queue for queue in self._queues.values() if queue.stall() is not None]
        for queue in stalled:
            queue.resume()
        if stalled:
            plural = "" if len(stalled) == 1 else "s"
            self._log.info("%d stopped queue%s: trying again", len(stalled), plural)
        return len(stalled)

    def _stalled(self, index: int, stall: Stall) -> None:
        self._told.tell(
            WARNING,
            "queue %d has stopped: %s.%s Then: vhostblk ctl resume %s",
            index,
            text(stall),
            _REMEDIES.get(stall.errno, " Mend the disk."),
            self._name,
        )

    def _failed(self, index: int, failure: Stall) -> None:
        self._told.tell(WARNING, "queue %d: %s", index, text(failure))


_REMEDIES = {
    errno.ENOSPC: " Make room for it.",
    errno.EDQUOT: " Make room for it, or raise the quota.",
}


def text(stall: Stall) -> str:
    """Say what failed and why, without a guest's data in it."""
    why = os.strerror(stall.errno)
    return f"{stall.op.name} of {stall.length} bytes at {stall.offset} failed: {why}"
