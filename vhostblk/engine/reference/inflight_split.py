"""
The inflight region of a split ring: which heads were taken.

A batch that is given back is a list before the used index is stored, and taken off behind it.  Who
comes after us compares the two indexes: where they differ, the list says what the driver has.

Source: vhost-user, "Inflight I/O tracking"; read `inflight` first.
"""

import ctypes
from collections.abc import Sequence

from vhostblk.engine.api import Piece
from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.inflight import HEADER, VERSION, check
from vhostblk.engine.reference.ring import Broken

_U16 = 0xFFFF


class SplitHeader(ctypes.LittleEndianStructure):
    """What stands in front of a split region's entries."""

    _fields_ = (
        ("features", ctypes.c_uint64),
        ("version", ctypes.c_uint16),
        ("desc_num", ctypes.c_uint16),
        ("last_batch_head", ctypes.c_uint16),
        ("used_idx", ctypes.c_uint16),
    )
    features: int
    version: int
    desc_num: int
    last_batch_head: int
    used_idx: int


class SplitEntry(ctypes.LittleEndianStructure):
    """What is noted of one descriptor of a split ring, if it is a head."""

    _fields_ = (
        ("inflight", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 5),
        ("next", ctypes.c_uint16),
        ("counter", ctypes.c_uint64),
    )
    inflight: int
    next: int
    counter: int


def split_bytes(entries: int) -> int:
    """Return how long a split region of so many entries is."""
    return ctypes.sizeof(SplitHeader) + entries * ctypes.sizeof(SplitEntry)


class SplitRegion:
    """
    The region of a split ring: one entry for each head.

    Args:
        memory: Where it is, long enough.
        entries: How many it has; the ring may be smaller.
    """

    def __init__(self, memory: Piece, entries: int) -> None:
        host, _ = memory
        self._header = SplitHeader.from_address(host)
        at = host + ctypes.sizeof(SplitHeader)
        self._entries = (SplitEntry * entries).from_address(at)
        self._counter = 0
        self._last_batch_head = 0

    def recover(self, size: int, used_idx: int) -> list[int] | None:
        """
        Find out what a predecessor had taken.

        Args:
            size: Of the ring.
            used_idx: The used ring's.

        Returns:
            Heads in the order they were taken; None: nobody was here before.

        Raises:
            Broken: No back-end has left it like that.
        """
        if self._header.version == 0:
            self._initialise(used_idx)
            return None
        check(self._header, len(self._entries))
        self._finish_batch(size, used_idx)
        taken = [
            (self._entries[i].counter, i) for i in range(size) if self._entries[i].inflight == 1
        ]
        taken.sort()
        if taken:
            self._counter = taken[-1][0] + 1
        return [head for _, head in taken]

    def _initialise(self, used_idx: int) -> None:
        ctypes.memset(ctypes.addressof(self._entries), 0, ctypes.sizeof(self._entries))
        self._header.features = 0
        self._header.desc_num = len(self._entries)
        self._header.last_batch_head = 0
        # The ring's own: a guest that came by migration brings one that is not 0.
        self._header.used_idx = used_idx
        self._header.version = VERSION

    def _finish_batch(self, size: int, used_idx: int) -> None:
        """Take off what the driver has got back already."""
        count = (used_idx - self._header.used_idx) & _U16
        for head in self._batch(size, count) if count <= size else ():
            self._entries[head].inflight = 0
        self._header.used_idx = used_idx

    def _batch(self, size: int, count: int) -> list[int]:
        """Return the heads of the last batch; none if its list comes round: it never was one."""
        heads: list[int] = []
        at, head = HEADER, self._header.last_batch_head
        for _ in range(count):
            if head >= size:
                raise Broken(Reason.INFLIGHT, at, head)
            if head in heads:
                return []
            heads.append(head)
            at, head = head, self._entries[head].next
        return heads

    def forget(self) -> None:
        """Have it made anew by the next `recover`."""
        self._header.version = 0

    def mark(self, head: int) -> None:
        """Note that a chain is taken."""
        entry = self._entries[head]
        entry.counter = self._counter
        self._counter += 1
        entry.inflight = 1

    def prepare(self, heads: Sequence[int]) -> None:
        """Note what is about to be given back."""
        for head in heads:
            self._entries[head].next = self._last_batch_head
            self._last_batch_head = self._header.last_batch_head = head

    def commit(self, heads: Sequence[int], used_idx: int) -> None:
        """Note that it was given back: the used ring's index is *used_idx* now."""
        for head in heads:
            self._entries[head].inflight = 0
        self._header.used_idx = used_idx
