"""Where jobs wait for the thread that serves a disk, and results for the worker."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import ECANCELED, EIO
from weakref import finalize

from vhostblk.engine.api import Job, Op

MAX_ERRNO = 4095
"""The largest error number of Linux; whatever else a disk says is EIO."""


class Bell:
    """An eventfd that one thread rings and another waits for; closed when nobody holds it."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        # Not on a deadline of ours: whoever still polls it must not meet its number reused.
        finalize(self, os.close, self._fd)

    def fileno(self) -> int:
        """Return a descriptor that is readable while the bell has been rung."""
        return self._fd

    def ring(self) -> None:
        """Wake whoever waits."""
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Forget the rings so far."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)


@dataclass(frozen=True, slots=True)
class Result:
    """
    How a job ended.

    Args:
        tag: Which.
        errno: 0 for success.
        kept: The disk kept a view of guest memory.
    """

    tag: int
    errno: int
    kept: bool = False


class JobBox:
    """
    A queue's `Mailbox`, with the worker's side of it.

    Args:
        wake: Called, on the disk's thread, when a result waits.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._bell = Bell()
        self._lock = threading.Lock()
        self._waiting: list[Job] = []
        self._open: set[int] = set()
        self._results: list[Result] = []

    def fileno(self) -> int:
        """Return a descriptor that is readable while jobs wait."""
        return self._bell.fileno()

    def take(self) -> list[Job]:
        """
        Return the jobs that wait; a CANCEL only for a job that was taken and not ended.

        A job whose CANCEL waits behind it is ended instead.
        """
        self._bell.clear()
        with self._lock:
            waiting, self._waiting = self._waiting, []
            given_up = {job.tag for job in waiting if job.op is Op.CANCEL} - self._open
            taken = [job for job in waiting if job.op is not Op.CANCEL]
            ended = [Result(job.tag, ECANCELED) for job in taken if job.tag in given_up]
            self._results += ended
            self._open.update(job.tag for job in taken if job.tag not in given_up)
            shown = [job for job in waiting if job.tag in self._open]
        if ended:
            self._wake()
        return shown

    def complete(self, ended: Sequence[tuple[int, int]]) -> None:
        """
        End jobs that were taken: (tag, errno).

        Raises:
            ValueError: A tag names no such job, or one that was ended; the others are ended.
        """
        self._end([Result(tag, e if 0 <= e <= MAX_ERRNO else EIO) for tag, e in ended])

    def lost(self) -> int:
        """Return 0: nothing that vanishes is survived here."""
        return 0

    def break_queue(self, tag: int) -> None:
        """End a job whose views the disk kept: it fails, and its queue breaks."""
        self._end([Result(tag, 1, kept=True)])

    def _end(self, results: list[Result]) -> None:
        unknown: list[int] = []
        with self._lock:
            for result in results:
                if result.tag in self._open:
                    self._open.remove(result.tag)
                    self._results.append(result)
                else:
                    unknown.append(result.tag)
        self._wake()
        if unknown:
            raise ValueError(f"no job has tag {unknown[0]}")

    def post(self, job: Job) -> None:
        """Worker: leave a job, or a CANCEL."""
        with self._lock:
            first = not self._waiting  # of those that the reader will find together
            self._waiting.append(job)
        if first:
            self._bell.ring()

    def reap(self) -> list[Result]:
        """Worker: return the results that wait."""
        with self._lock:
            results, self._results = self._results, []
        return results
