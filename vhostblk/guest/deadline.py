"""
One clock for every wait: seconds that run out.

A wait that loops must share one deadline between its rounds; a timeout handed to each round
separately would start anew each time and never end.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vhostblk.guest.errors import DeadlineError


@dataclass(frozen=True, slots=True)
class Deadline:
    """
    A point in time, and what is waited for until then.

    Args:
        what: Completes the sentence "timed out waiting for …".
        at: Reading of *clock* at which it is over.
        clock: Monotonic seconds.
    """

    what: str
    at: float
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    @classmethod
    def after(cls, seconds: float, what: str) -> "Deadline":
        """Return the deadline that is over *seconds* from now."""
        return cls(what, time.monotonic() + seconds)

    def left(self) -> float:
        """
        Tell how much time is left.

        Returns:
            Seconds, more than 0.

        Raises:
            DeadlineError: None is left.
        """
        left = self.at - self.clock()
        if left <= 0:
            raise DeadlineError(f"timed out waiting for {self.what}")
        return left
