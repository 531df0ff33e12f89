"""An inflight region, read and written by arithmetic of our own."""

import ctypes
import mmap
import struct
from dataclasses import dataclass

SPLIT_HEADER = struct.Struct("<QHHHH")
SPLIT_ENTRY = struct.Struct("<B5xHQ")
PACKED_HEADER = struct.Struct("<QHHHHHHBB10x")
PACKED_ENTRY = struct.Struct("<BxHHHQHHIQ")


@dataclass(frozen=True)
class Entry:
    """What stands of one descriptor; of a split one *next* and *counter* only."""

    inflight: int
    next: int
    counter: int
    last: int = 0
    num: int = 0
    id: int = 0
    flags: int = 0
    length: int = 0
    address: int = 0


class Region:
    """
    A region, empty at first.

    Args:
        entries: How many descriptors it is for.
        packed: Those of a packed ring.
    """

    def __init__(self, entries: int, *, packed: bool) -> None:
        self.entries = entries
        self.packed = packed
        self._header = PACKED_HEADER if packed else SPLIT_HEADER
        self._entry = PACKED_ENTRY if packed else SPLIT_ENTRY
        self.length = self._header.size + entries * self._entry.size
        self.bytes = mmap.mmap(-1, self.length)
        self._anchor = ctypes.c_char.from_buffer(self.bytes)
        self.piece = (ctypes.addressof(self._anchor), self.length)

    def copy(self) -> "Region":
        """Return the same bytes in a mapping of their own."""
        made = Region(self.entries, packed=self.packed)
        made.bytes[:] = self.bytes[:]
        return made

    def header(self) -> tuple[int, ...]:
        """
        Return the fields in front.

        Split: features, version, desc_num, last_batch_head, used_idx.  Packed: features, version,
        desc_num, free_head, old_free_head, used_idx, old_used_idx, used_wrap, old_used_wrap.
        """
        found: tuple[int, ...] = self._header.unpack_from(self.bytes)
        return found

    def at(self, index: int) -> int:
        """Return where an entry begins."""
        return self._header.size + index * self._entry.size

    def entry(self, index: int) -> Entry:
        found = self._entry.unpack_from(self.bytes, self.at(index))
        if not self.packed:
            return Entry(*found)
        inflight, following, last, num, counter, *rest = found
        return Entry(inflight, following, counter, last, num, *rest)

    def in_flight(self) -> list[int]:
        """Return the entries that are, in the order of their counters."""
        entries = [(self.entry(i), i) for i in range(self.entries)]
        return [i for entry, i in sorted(entries, key=_by_counter) if entry.inflight]

    def names(self) -> list[int]:
        """Return heads or buffer ids of what is in flight, in that order."""
        if not self.packed:
            return self.in_flight()
        return [self.entry(self.entry(i).last).id for i in self.in_flight()]

    def used(self) -> int:
        """Return the used index that is noted; packed: with its wrap counter."""
        header = self.header()
        return header[4] if not self.packed else header[5] | 0x8000 * header[7]

    def under_way(self) -> tuple[object, ...]:
        """Return what has a meaning whichever order chains were given back in."""
        counters = [self.entry(i).counter for i in self.in_flight()]
        return self.names(), counters, self.used()

    def meaning(self) -> tuple[object, ...]:
        """
        Return all that has a meaning.

        Of a free entry of a packed region that is `next` alone: copies are made there of a chain
        that turns out to be none, or waits.
        """
        if not self.packed:
            return bytes(self.bytes), ()
        entries = [self.entry(i) for i in range(self.entries)]
        taken = {i for head in self.in_flight() for i in self._chain(head)}
        return self.header(), tuple(
            one if i in taken else one.next for i, one in enumerate(entries)
        )

    def _chain(self, head: int) -> list[int]:
        chain = [head]
        while len(chain) < self.entry(head).num:
            chain.append(self.entry(chain[-1]).next)
        return chain

    def poke(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = data


def _by_counter(one: tuple[Entry, int]) -> tuple[int, int]:
    entry, index = one
    return entry.counter, index
