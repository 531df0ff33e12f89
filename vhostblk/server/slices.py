"""
Several things with work to do on one loop, a slice of time for all of them at a time.

Between two slices everybody else on the loop has a turn, and other threads get the interpreter.
"""

from collections.abc import Callable
from typing import Protocol

SLICE_SECONDS = 0.0005


class Worker(Protocol):
    """What has work to do."""

    def work(self, until: float) -> bool:
        """Do some, up to a time of the clock, and return whether more may be left."""
        ...


class Slices:
    """
    Who has work, in turn.

    Args:
        call_soon: Of the loop.
        clock: Seconds.
    """

    def __init__(
        self, call_soon: Callable[[Callable[[], None]], object], clock: Callable[[], float]
    ) -> None:
        self._call_soon = call_soon
        self._clock = clock
        self._waiting: dict[Worker, None] = {}  # in the order of their turns
        self._due = False

    def wake(self, worker: Worker) -> None:
        """Let *worker* work in the next slice; again is harmless."""
        self._waiting[worker] = None
        self._ask()

    def forget(self, worker: Worker) -> None:
        """Give *worker* no more time."""
        self._waiting.pop(worker, None)

    def _ask(self) -> None:
        if self._waiting and not self._due:
            self._due = True
            self._call_soon(self._work)

    def _work(self) -> None:
        self._due = False
        until = self._clock() + SLICE_SECONDS
        try:
            while self._waiting:
                worker = next(iter(self._waiting))
                del self._waiting[worker]
                if worker.work(until):
                    self._waiting[worker] = None
                if self._clock() >= until:
                    break
        finally:
            self._ask()  # the others' turns come, whatever becomes of one
