"""
Concurrent block I/O, written down and explained.

``History`` is the record, ``check`` the verdict: every sector that was read must be explained by
the writes before it and under way.  ``ConcurrentLoad`` makes such a history.
See docs/how-to/test-with-the-fake-guest.md.
"""

from vhostblk.guest.history.check import Finding, UnexplainedError, check, find
from vhostblk.guest.history.load import ConcurrentLoad, stamps
from vhostblk.guest.history.record import Discarded, History, Initially, Kind, Operation

__all__ = [
    "ConcurrentLoad",
    "Discarded",
    "Finding",
    "History",
    "Initially",
    "Kind",
    "Operation",
    "UnexplainedError",
    "check",
    "find",
    "stamps",
]
