"""What is running and how long it will take: one line that changes on a terminal."""

import sys
import time
from typing import TextIO


class Progress:
    """
    Counts runs; says where the measurement stands.

    Args:
        runs: How many there will be, about.
        stream: Where to; lines that change only on a terminal.
    """

    def __init__(self, runs: int, stream: TextIO = sys.stderr) -> None:
        self._runs = runs
        self._done = 0
        self._stream = stream
        self._live = stream.isatty()
        self._begin = time.monotonic()
        self._line = ""

    def line(self, name: str) -> None:
        """Begin a line of the table."""
        self._line = name
        if not self._live:
            print(f"{self._left()}{name}", file=self._stream, flush=True)

    def run(self, name: str, turn: str) -> None:
        """Begin a run of *name*."""
        if self._live:
            text = f"{self._left()}{self._line}: {name}, {turn}"
            print(f"\r\x1b[K{text[:100]}", end="", file=self._stream, flush=True)

    def done(self) -> None:
        """Count a run that is over."""
        self._done += 1

    def clear(self) -> None:
        """Take the changing line away, before something else is printed."""
        if self._live:
            print("\r\x1b[K", end="", file=self._stream, flush=True)

    def _left(self) -> str:
        """Return the share that is done and the time that the rest takes at that rate."""
        if not self._done:
            return "[  0%] "
        share = min(self._done / self._runs, 1.0)
        seconds = round((time.monotonic() - self._begin) / share * (1 - share))
        return f"[{share:4.0%}, {seconds // 60}:{seconds % 60:02} left] "
