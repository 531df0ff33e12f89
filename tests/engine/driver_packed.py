"""The driver's side of a packed ring."""

import copy
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from engine.driver import NEXT, SKIPPED, WRITE, Entry, Lane, Memory, Used

AVAIL, USED = 1 << 7, 1 << 15
JUNK = 0xBEEF
"""The id in all descriptors of a chain but the last, where nobody may look."""


@dataclass(frozen=True)
class Laid:
    """A chain in the ring: its descriptors, and where they are."""

    entries: tuple[Entry, ...]
    index: int
    wrap: bool
    flags: int


class PackedDriver:
    """
    A packed ring in guest memory.

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
        self.desc = at
        self.driver_event = at + 16 * size
        self.device_event = self.driver_event + 4
        self.restart(size, 0, 0)

    def restart(self, size: int, avail: int, used: int) -> int:  # noqa: ARG002 - they agree here
        self._memory.write(self.desc, bytes(self.device_event + 4 - self.desc))
        self.size = size
        self.index, self.wrap = avail % size, avail & 0x8000 == 0
        self.used_index, self.used_wrap = self.index, self.wrap
        if not self.wrap:  # as the round before left them: used
            self._fill(AVAIL | USED, range(size))
        elif self.index:
            self._fill(AVAIL | USED, range(self.index))
        if not self.wrap:
            self._fill(0, range(self.index))
        self._marks = [self._half(self.index, wrap=self.wrap)]
        self._laid: dict[int, Laid] = {}
        self._pending: list[int] = []
        self._offered: list[int] = []
        self._counts: dict[int, int] = {}
        self._taken = 0
        self._next_id = 0
        self._history: Used = []
        return self._marks[0] * 0x10001

    def _fill(self, flags: int, indexes: range) -> None:
        for index in indexes:
            self._memory.write16(self.desc + 16 * index + 14, flags)

    def _half(self, index: int, *, wrap: bool) -> int:
        return index | 0x8000 * wrap

    def _step(self, index: int, wrap: bool, count: int) -> tuple[int, bool]:  # noqa: FBT001 - a pair
        rounds, rest = divmod(index + count, self.size)
        return rest, wrap ^ (rounds & 1 == 1)

    def put(self, index: int, desc: tuple[int, int, int, int], *, table: int = 0) -> None:
        """Write one descriptor (address, length, flags, id), of the ring or of *table*."""
        address, length, flags, name = desc
        raw = struct.pack("<QIHH", address, length, name, flags)
        self._memory.write((table or self.desc) + 16 * index, raw)

    def mark(self, *, wrap: bool) -> int:
        """Return the flags of an available descriptor in the round of *wrap*."""
        return AVAIL if wrap else USED

    def lay(self, entries: Sequence[Entry], name: int | None = None) -> int:
        """Write all but the first descriptor's flags, which make it available."""
        if name is None:
            name = self._free_id()
        index, wrap = self.index, self.wrap
        for i, (address, length, flags, link) in enumerate(entries):
            own = name if i + 1 == len(entries) else JUNK
            marked = flags | self.mark(wrap=wrap) if i else self._before(index)
            self.put(index, (address, length, marked, own if link is None else link & 0xFFFF))
            index, wrap = self._step(index, wrap, 1)
        first = entries[0][2] | self.mark(wrap=self.wrap)
        last = entries[-1][3]
        key = name if last is None else last & 0xFFFF
        self._laid[key] = Laid(tuple(entries), self.index, self.wrap, first)
        self._pending.append(key)
        self.index, self.wrap = index, wrap
        self._marks.append(self._half(index, wrap=wrap))
        return key

    def _before(self, index: int) -> int:
        return self._memory.read16(self.desc + 16 * index + 14)

    def _free_id(self) -> int:
        for _ in range(self.size):
            name, self._next_id = self._next_id, (self._next_id + 1) % self.size
            if name not in self._offered and name not in self._pending:
                return name
        return self._next_id

    def lay_table(self, address: int, entries: Sequence[Entry]) -> None:
        """Write a table; none of its flags but WRITE has a meaning, and no link."""
        for i, (where, length, flags, link) in enumerate(entries):
            self.put(i, (where, length, flags, JUNK if link is None else link), table=address)

    def offer(self, name: int) -> None:
        if name not in self._pending:  # again, though it may be under way
            again = self._laid.get(name)
            entries = ((0, 0, 0, None),) if again is None else again.entries
            self.lay(entries, name)
        self._pending.remove(name)
        chain = self._laid[name]
        self._memory.write16(self.desc + 16 * chain.index + 14, chain.flags)
        self._offered.append(name)
        self._counts[name] = len(chain.entries)

    def offer_nobody(self) -> int:
        self.offer(self.lay([(0, 0, 0, None)], self.size))
        return self.size

    def adopt(self, memory: Memory) -> Self:
        """Return a driver of the same ring in a copy of its memory."""
        made = copy.copy(self)
        vars(made).update(copy.deepcopy({n: v for n, v in vars(self).items() if n != "_memory"}))
        made._memory = memory
        return made

    def jump(self, by: int) -> None:
        if by == 0:
            return
        index, wrap = self._step(self.index, self.wrap, abs(by) % self.size)
        available = self.mark(wrap=wrap)
        other_round = available ^ (AVAIL | USED) | NEXT | WRITE
        where = self.desc + 16 * index + 14
        self._memory.write16(where, available if by > 0 else other_round)

    def room(self) -> int:
        self.used()
        return self.size - sum(self._counts[name] for name in self._offered)

    def used(self) -> Used:
        while True:
            raw = self._memory.read(self.desc + 16 * self.used_index, 16)
            _, length, name, flags = struct.unpack("<QIHH", raw)
            both = AVAIL | USED if self.used_wrap else 0
            if flags & (AVAIL | USED) != both or name not in self._offered:
                return list(self._history)
            batch = self._offered.index(name)
            gone = self._offered[: batch + 1] if self._in_order else [name]
            self._history += [(skipped, SKIPPED) for skipped in gone[:-1]]
            self._history.append((name, length))
            for one in gone:
                self._offered.remove(one)
            count = sum(self._counts[one] for one in gone)
            self.used_index, self.used_wrap = self._step(self.used_index, self.used_wrap, count)

    def begin(self) -> int:
        return self._marks[0] * 0x10001

    def base(self, taken: int) -> int:
        self.used()
        return self._marks[taken] | self._half(self.used_index, wrap=self.used_wrap) << 16

    def at(self, taken: int) -> int:
        return self._marks[taken] & 0x7FFF

    def begins(self, name: int) -> int:
        return self._laid[name].index

    def no_interrupt(self, *, quiet: bool) -> None:
        self._memory.write16(self.driver_event + 2, quiet)

    def is_quiet(self) -> bool:
        return self._memory.read16(self.driver_event + 2) == 1

    def silence(self) -> None:
        self._memory.write16(self.device_event + 2, 1)

    def wants_kicks(self) -> bool:
        return self._memory.read16(self.device_event + 2) == 0

    def parts(self) -> dict[str, tuple[int, int]]:
        return {
            "desc": (self.desc, 16 * self.size),
            "avail": (self.driver_event, 4),
            "used": (self.device_event, 4),
        }

    def span(self) -> tuple[int, int]:
        return self.desc, self.device_event + 4 - self.desc

    def shared(self) -> tuple[int, int]:
        return self.desc, self.device_event + 4 - self.desc


def packed(lane: Lane) -> PackedDriver:
    """Return the driver of a lane whose ring is packed."""
    assert isinstance(lane.ring, PackedDriver)
    return lane.ring
