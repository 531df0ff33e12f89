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

from vhostblk.engine.api import OnError, Queue, Stall
from vhostblk.server.log import Allowance, Log

TOLD = 16
TOLD_SECONDS = 10.0
"""So many errors are told of at once, and one more each so many seconds."""


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
        self._allowance = Allowance(burst=TOLD, seconds=TOLD_SECONDS, clock=clock)
        self._untold = 0

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
        self._tell(
            "queue %d has stopped: %s.%s Then: vhostblk ctl resume %s",
            index,
            text(stall),
            _REMEDIES.get(stall.errno, " Mend the disk."),
            self._name,
        )

    def _failed(self, index: int, failure: Stall) -> None:
        self._tell("queue %d: %s", index, text(failure))

    def _tell(self, line: str, *values: object) -> None:
        if not self._allowance.take():
            self._untold += 1
            return
        if self._untold:
            line, values = f"{line} (%d errors before were not told of)", (*values, self._untold)
            self._untold = 0
        self._log.warning(line, *values)


_REMEDIES = {
    errno.ENOSPC: " Make room for it.",
    errno.EDQUOT: " Make room for it, or raise the quota.",
}


def text(stall: Stall) -> str:
    """Say what failed and why, without a guest's data in it."""
    why = os.strerror(stall.errno)
    return f"{stall.op.name} of {stall.length} bytes at {stall.offset} failed: {why}"
