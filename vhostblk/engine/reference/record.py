"""
What drivers write in their descriptors, recorded for the control plane: samples and counts.

The worker notes and commits, the control plane takes; they share a lock, held for moments.
"""

import threading
from collections.abc import Callable
from itertools import islice

from vhostblk.blk.request import Buffer
from vhostblk.memory.sample import Role, Sample

ROOM = 8192
"""Samples that wait to be taken; ``VHB_SAMPLES``."""
BOUNCE_SLOT = 2048
"""Bytes a bouncing guest allocates by: IO_TLB_SIZE of Linux's swiotlb."""

Note = tuple[int, int, Role, bool]
"""Address, length in bytes, role, whether it is outside."""


def _slots(length: int) -> int:
    return -(-length // BOUNCE_SLOT)


class Trace:
    """
    What one chain names; it may be walked again, with another trace.

    Attributes:
        begun: There is one; else the avail ring was wrong.
        notes: Its descriptors in order, and behind them its indirect table.
        outside: One of them is denied or noted.
        descriptors: How many there are, the one that names a table not counted.
        longest: Bytes of the longest.
        slots: Bounce slots that they and the table would fill.
    """

    def __init__(self) -> None:
        self.begun = False
        self.notes: list[Note] = []
        self.outside = False
        self.descriptors = 0
        self.longest = 0
        self.slots = 0

    def _note(self, address: int, length: int, role: Role, *, outside: bool) -> None:
        self.notes.append((address, length, role, outside))
        self.outside |= outside

    def see(self, part: Buffer, *, outside: bool) -> None:
        """Note a descriptor."""
        self.descriptors += 1
        self.longest = max(self.longest, part.length)
        self.slots += _slots(part.length)
        role = Role.WRITABLE if part.writable else Role.READABLE
        self._note(part.address, part.length, role, outside=outside)

    def see_table(self, address: int, length: int, *, outside: bool) -> None:
        """Note the indirect table, when all that is read of it is read."""
        self.slots += _slots(length)
        self._note(address, length, Role.TABLE, outside=outside)

    def see_status(self, address: int, *, outside: bool) -> None:
        """Note a status byte that is outside, of a chain whose descriptors were not looked at."""
        if outside and not self.outside:
            self._note(address, 1, Role.WRITABLE, outside=True)


class Record:
    """
    The samples of a queue, and whose turn it is to be one.

    Args:
        tell: Call something on the control thread.
    """

    def __init__(self, tell: Callable[[Callable[[], None]], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._samples: list[Sample] = []
        self._on_samples: Callable[[], None] | None = None
        self._told = False
        self._first = self._every = self._wait = self._chain = 0

    def begin(self, first: int, every: int, on_samples: Callable[[], None] | None) -> None:
        """Control plane, while it owns the ring: begin a new count, forget what was not taken."""
        self._samples.clear()
        self._on_samples = on_samples
        self._told = False
        self._first, self._every, self._wait, self._chain = first, every, every, 0

    def take(self) -> list[Sample]:
        """Control plane: return what there is, and forget it."""
        with self._lock:
            taken, self._samples = self._samples, []
            self._told = False
        return taken

    def has_room(self) -> bool:
        """Worker: say whether a chain may be popped; the first are not to be lost."""
        return not self._first or len(self._samples) <= ROOM // 2

    def commit(self, trace: Trace) -> None:
        """Worker: a chain was popped, or broke its queue."""
        if not trace.begun:
            return
        due, complete = self._next_turn()
        number, self._chain = self._chain, (self._chain + 1) & 0xFFFF
        notes = [note for note in trace.notes if due or note[-1]]
        with self._lock:
            room = ROOM - len(self._samples)
            self._samples += [Sample(number, *note) for note in islice(notes, room)]
            half = len(self._samples) >= ROOM // 2
            news = (due or trace.outside) and not self._told and (trace.outside or half)
            self._told |= complete or news
        if (complete or news) and self._on_samples is not None:
            self._tell(self._on_samples)

    def _next_turn(self) -> tuple[bool, bool]:
        """Return whether this chain is sampled, and whether it is the last of the first."""
        if self._first:
            self._first -= 1
            return True, self._first == 0
        if self._wait:
            self._wait -= 1
            if self._wait == 0:
                self._wait = self._every
                return True, False
        return False, False
