"""
What the disk cannot do: told of, or held until an operator has helped.

A request that is held goes on as if the disk had not answered yet: it is in flight, its memory is
in use, a drain waits for it.
"""

import errno
from collections.abc import Callable
from functools import partial

from vhostblk.engine.errors import OnError, Stall
from vhostblk.engine.reference.chain import Request


class Errors:
    """
    The errors of one queue; the worker's, but for *policy*, what is told, and *resume*.

    Args:
        tell: Call something on the control thread.
    """

    def __init__(self, tell: Callable[[Callable[[], None]], None]) -> None:
        self._tell = tell
        self._telling = False
        self.policy = OnError.REPORT
        self.on_stalled: Callable[[Stall], None] | None = None
        self.on_failed: Callable[[Stall], None] | None = None
        self.held: list[Request] = []
        """In the order they failed; while there is one, nothing is taken."""
        self.stall: Stall | None = None
        """The first error of this stall."""
        self.resume = False
        """They are to be tried again."""

    def holds(self, request: Request, error: Stall) -> bool:
        """Say whether a request that failed is held; else its driver is to be told."""
        stops = self.policy is OnError.STOP
        stops |= self.policy is OnError.ENOSPC and error.errno == errno.ENOSPC
        # Memory of the guest's that is gone does not come back.
        if not stops or error.errno == errno.EFAULT:
            self._tell_failed(error)
            return False
        self.held.append(request)
        if self.stall is None:
            self.stall = error
            self._tell(partial(self._tell_stalled, error))
        return True

    def _tell_stalled(self, stall: Stall) -> None:
        """Control plane: say that the queue has stopped, if it still has."""
        if self.stall is stall and self.on_stalled is not None:
            self.on_stalled(stall)

    def _tell_failed(self, error: Stall) -> None:
        if self._telling:
            return  # one at a time, be they many
        self._telling = True

        def tell() -> None:
            self._telling = False
            if self.on_failed is not None:
                self.on_failed(error)

        self._tell(tell)

    def take_held(self) -> list[Request]:
        """Return what is held, and hold it no longer."""
        held, self.held = self.held, []
        self.stall = None
        self.resume = False
        return held
