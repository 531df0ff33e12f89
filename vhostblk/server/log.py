"""Log lines that name their device, through the standard library's logging."""

import logging
import time
from collections.abc import Callable, MutableMapping

MESSAGES = "vhostblk.messages"
"""The logger of every protocol message by name, at level DEBUG."""
STATUS = "vhostblk.status"
"""The logger of status documents that were asked for, at level INFO."""


class Log(logging.LoggerAdapter[logging.Logger]):
    """
    A logger of one device; an adapter is the one thing logging wants inherited.

    Args:
        logger: Its name, under ``vhostblk``.
        device: What every line begins with.
    """

    def __init__(self, logger: str, device: str) -> None:
        super().__init__(logging.getLogger(logger), {"device": device})
        self._device = device.replace("%", "_")

    def process(
        self, msg: object, kwargs: MutableMapping[str, object]
    ) -> tuple[str, MutableMapping[str, object]]:
        """Put the device in front."""
        return f"{self._device}: {msg}", kwargs


class Allowance:
    """
    How often something may be logged that a guest can cause as often as it likes.

    Args:
        burst: So many at once.
        seconds: One more each so many.
        clock: Seconds that only grow.
    """

    def __init__(
        self, *, burst: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._seconds = seconds
        self._clock = clock
        self._left = float(burst)
        self._at = clock()

    def take(self) -> bool:
        """Return whether it may be logged now; that one counts."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) / self._seconds)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Told:
    """
    Lines that a guest can cause as often as it likes: some are logged, the others counted.

    Args:
        log: Where to.
        clock: Seconds that only grow.
    """

    BURST = 16
    SECONDS = 10.0

    def __init__(self, log: Log, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._allowance = Allowance(burst=self.BURST, seconds=self.SECONDS, clock=clock)
        self._untold = 0

    def tell(
        self, level: int, line: str, *values: object, error: BaseException | None = None
    ) -> bool:
        """
        Log a line, if one may be logged now; it says how many were not.

        Args:
            level: As in logging.
            line: With *values*, as in logging.
            values: For *line*.
            error: To be shown with its traceback.
        """
        if not self._allowance.take():
            self._untold += 1
            return False
        if self._untold:
            line, values = f"{line} (%d before were not told of)", (*values, self._untold)
            self._untold = 0
        self._log.log(level, line, *values, exc_info=error)
        return True
