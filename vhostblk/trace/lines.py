"""Requests as a person reads them: one line each."""

import errno
import os
import time

from vhostblk.trace.format import Op
from vhostblk.trace.records import NO_QUEUE, Completed, Submitted

_NS = 1_000_000_000
_UNITS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"))

NAMES = {
    Op.READ: "read",
    Op.WRITE: "write",
    Op.FLUSH: "flush",
    Op.DISCARD: "discard",
    Op.WRITE_ZEROES: "write-zeroes",
}
"""Of operations, as layers and commands take them."""


def line(submitted: Submitted, completed: Completed | None, *, started: int) -> str:
    """
    Return a request as one line, as the ``log`` layer writes it.

    Args:
        submitted: Its begin.
        completed: Its end; None: it has none yet.
        started: What its times count from: nanoseconds since 1970, UTC.
    """
    what = NAMES[submitted.op]
    if submitted.op is not Op.FLUSH:
        what += f" {submitted.offset}+{submitted.length}"
    if text := flags(submitted):
        what += f" {text}"
    when = moment(started + submitted.time)
    return f"{when} {queue(submitted)} {what}: {ending(submitted, completed)}"


def ending(submitted: Submitted, completed: Completed | None) -> str:
    """Return how a request ended, and how long that took."""
    if completed is None:
        return "not over"
    took = duration(completed.time - submitted.time)
    return f"{result(completed)} in {took}"


def result(completed: Completed | None) -> str:
    """Return ``ok``, the name of an error, or that there is no end."""
    if completed is None:
        return "-"
    if not completed.error:
        return "ok"
    return errno.errorcode.get(completed.error, f"error {completed.error}")


def meaning(error: int) -> str:
    """Return what an errno means."""
    return os.strerror(error)


def queue(submitted: Submitted) -> str:
    """Return ``q`` and the number of the queue, or a dash."""
    return "-" if submitted.queue == NO_QUEUE else f"q{submitted.queue}"


def flags(submitted: Submitted) -> str:
    """Return ``fua`` or ``unmap``, or nothing."""
    return (
        "fua" * submitted.fua
        + " " * (submitted.fua and submitted.unmap)
        + ("unmap" * submitted.unmap)
    )


def moment(ns: int) -> str:
    """Return a time of day, UTC, in microseconds: ``2026-01-31T12:00:00.000000``."""
    seconds, rest = divmod(ns, _NS)
    day = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{day}.{rest // 1000:06d}"


def duration(ns: int) -> str:
    """Return a time in the largest unit of which it is one or more."""
    for size, name in _UNITS:
        if ns >= size:
            return f"{ns / size:.4g}{name}"
    return f"{max(ns, 0)}ns"
