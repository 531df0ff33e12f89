"""The driver's side of a split ring."""

import copy
import struct
from collections.abc import Sequence
from typing import Self

from engine.driver import SKIPPED, Entry, Lane, Memory, Used


class SplitDriver:
    """
    A split ring in guest memory.

    Args:
        memory: Where.
        at: Guest address.
        size: Descriptors.
        in_order: The device gives chains back in the order it got them.
    """

    def __init__(self, memory: Memory, at: int, size: int, *, in_order: bool = False) -> None:
        self._memory = memory
        self._in_order = in_order
        self._largest = size
        self.size = size
        self.desc = at
        self.avail = at + 16 * size
        self.used_ring = -(-(self.avail + 6 + 2 * size) // 4) * 4
        self.avail_idx = 0
        self._next_desc = 0
        self._start = 0
        self._seen = 0
        self._first_used = 0
        self._offered: list[int] = []
        self._history: Used = []

    def put(self, index: int, desc: tuple[int, int, int, int], *, table: int = 0) -> None:
        """Write one descriptor (address, length, flags, next), of the ring or of *table*."""
        self._memory.write((table or self.desc) + 16 * index, struct.pack("<QIHH", *desc))

    def lay(self, entries: Sequence[Entry], name: int | None = None) -> int:
        head = self._next_desc
        for i, (address, length, flags, link) in enumerate(entries):
            after = (head + i + 1) % self.size if link is None else link
            self.put((head + i) % self.size, (address, length, flags, after))
        self._next_desc = (head + len(entries)) % self.size
        return head if name is None else name

    def lay_table(self, address: int, entries: Sequence[Entry]) -> None:
        for i, (where, length, flags, link) in enumerate(entries):
            self.put(i, (where, length, flags, i + 1 if link is None else link), table=address)

    def offer(self, name: int) -> None:
        self._memory.write16(self.avail + 4 + 2 * (self.avail_idx % self.size), name)
        self.set_avail_idx(self.avail_idx + 1)
        self._offered.append(name)

    def offer_nobody(self) -> int:
        self.offer(self.size)
        return self.size

    def adopt(self, memory: Memory) -> Self:
        """Return a driver of the same ring in a copy of its memory."""
        made = copy.copy(self)
        vars(made).update(copy.deepcopy({n: v for n, v in vars(self).items() if n != "_memory"}))
        made._memory = memory
        return made

    def jump(self, by: int) -> None:
        self.set_avail_idx(self.avail_idx + by)

    def room(self) -> int:
        return self.size - (self.avail_idx - self.used_idx()) % 0x10000

    def set_avail_idx(self, value: int) -> None:
        self.avail_idx = value & 0xFFFF
        self._memory.write16(self.avail + 2, self.avail_idx)

    def set_used_idx(self, value: int) -> None:
        self._memory.write16(self.used_ring + 2, value & 0xFFFF)
        self._first_used = self._seen = value & 0xFFFF

    def used_idx(self) -> int:
        return self._memory.read16(self.used_ring + 2)

    def used(self) -> Used:
        while self._seen != self.used_idx():
            slot = self.used_ring + 4 + 8 * (self._seen % self.size)
            name, length = struct.unpack("<II", self._memory.read(slot, 8))
            if self._in_order:
                batch = self._before(name)
                self._history += [(skipped, SKIPPED) for skipped in self._offered[:batch]]
                del self._offered[: batch + 1]
                self._seen += batch
            self._history.append((name, length))
            self._seen = (self._seen + 1) & 0xFFFF
        return list(self._history)

    def _before(self, name: int) -> int:
        """Return how many are told of with *name*; none where the driver has lost count."""
        batch = self._offered.index(name) if name in self._offered else 0
        return batch if batch < (self.used_idx() - self._seen) & 0xFFFF else 0

    def begin(self) -> int:
        return self._start

    def base(self, taken: int) -> int:
        return (self._start + taken) & 0xFFFF

    def at(self, taken: int) -> int:
        return self.base(taken)

    def begins(self, name: int) -> int:
        return name

    def no_interrupt(self, *, quiet: bool) -> None:
        self._memory.write16(self.avail, quiet)

    def is_quiet(self) -> bool:
        return self._memory.read16(self.avail) & 1 == 1

    def silence(self) -> None:
        self._memory.write16(self.used_ring, 1)

    def wants_kicks(self) -> bool:
        return self._memory.read16(self.used_ring) == 0

    def restart(self, size: int, avail: int, used: int) -> int:
        end = self.used_ring + 6 + 8 * self._largest
        self._memory.write(self.desc, bytes(end - self.desc))
        self.size, self._next_desc, self._start = size, 0, avail
        self._offered.clear()
        self._history.clear()
        self.set_avail_idx(avail)
        self.set_used_idx(used)
        return avail

    def parts(self) -> dict[str, tuple[int, int]]:
        return {
            "desc": (self.desc, 16 * self.size),
            "avail": (self.avail, 6 + 2 * self.size),
            "used": (self.used_ring, 6 + 8 * self.size),
        }

    def span(self) -> tuple[int, int]:
        return self.desc, self.used_ring + 6 + 8 * self._largest - self.desc

    def shared(self) -> tuple[int, int]:
        return self.used_ring, 6 + 8 * self._largest


def split(lane: Lane) -> SplitDriver:
    """Return the driver of a lane whose ring is split."""
    assert isinstance(lane.ring, SplitDriver)
    return lane.ring
