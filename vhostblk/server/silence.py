"""
Notice a guest whose memory this process does not see.

With ``share=off`` QEMU sends a descriptor of the guest's memory all the same, but guest and device
each have a copy of their own behind it: the device sees valid rings, all zeroes, for ever, and
the guest waits without a word.  What can be seen is that it kicks and nothing is ever there.
"""

import asyncio
from collections.abc import Callable, Iterable

from vhostblk.engine.api import Counters
from vhostblk.server.log import Log

LISTEN_SECONDS = 2.0
"""How long after a start the first request may take.  A driver that kicks has one already."""


class Silence:
    """
    Says once, for a front-end, that it kicks and never asks for anything.

    Args:
        counters: What each queue has done.
        log: For what an operator should know.
    """

    def __init__(self, counters: Callable[[], Iterable[Counters]], log: Log) -> None:
        self._counters = counters
        self._log = log
        self._timer: asyncio.TimerHandle | None = None
        self._over = False

    def listen(self) -> None:
        """Look some time after a ring has started; an idle device costs nothing after that."""
        if self._timer is None and not self._over:
            self._timer = asyncio.get_running_loop().call_later(LISTEN_SECONDS, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        every = list(self._counters())
        if any(map(_asked, every)):
            self.stop()
            return
        if kicks := sum(one.kicks for one in every):
            self.stop()
            self._log.warning(
                "the guest has kicked %d times, but its rings read as empty: its memory is not "
                "shared with us; give QEMU's memory object share=on, as `vhostblk qemu-args` does",
                kicks,
            )


def _asked(done: Counters) -> bool:
    """Tell whether a queue has seen a request, good or bad."""
    good = done.reads + done.writes + done.flushes + done.discards + done.write_zeroes
    bad = done.errors + done.unsupported + done.malformed
    return bool(good + done.get_ids + bad + done.in_flight)
