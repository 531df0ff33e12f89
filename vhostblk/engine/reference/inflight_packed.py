"""
The inflight region of a packed ring: copies of the descriptors of what was taken.

The driver may write over those in the ring as soon as another chain is given back there.  Free
entries are a list; a chain is cut off its front, and put there again.  Two stores decide: that of
`old_free_head` takes a chain, that of a used element's flags, in the ring, gives a batch back.

Source: vhost-user, "Inflight I/O tracking"; read `inflight` first.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vhostblk.engine.api import Piece
from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.inflight import HEADER, VERSION, check
from vhostblk.engine.reference.ring import Broken, Descriptor
from vhostblk.spec.virtio_ring import PACKED_WRAP


class PackedHeader(ctypes.LittleEndianStructure):
    """What stands in front of a packed region's entries."""

    _fields_ = (
        ("features", ctypes.c_uint64),
        ("version", ctypes.c_uint16),
        ("desc_num", ctypes.c_uint16),
        ("free_head", ctypes.c_uint16),
        ("old_free_head", ctypes.c_uint16),
        ("used_idx", ctypes.c_uint16),
        ("old_used_idx", ctypes.c_uint16),
        ("used_wrap", ctypes.c_uint8),
        ("old_used_wrap", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 10),
    )
    features: int
    version: int
    desc_num: int
    free_head: int
    old_free_head: int
    used_idx: int
    old_used_idx: int
    used_wrap: int
    old_used_wrap: int


class PackedEntry(ctypes.LittleEndianStructure):
    """A copy of one descriptor of a packed ring; the first of a chain says what the chain is."""

    _fields_ = (
        ("inflight", ctypes.c_uint8),
        ("padding", ctypes.c_uint8),
        ("next", ctypes.c_uint16),
        ("last", ctypes.c_uint16),
        ("num", ctypes.c_uint16),
        ("counter", ctypes.c_uint64),
        ("id", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("len", ctypes.c_uint32),
        ("addr", ctypes.c_uint64),
    )
    inflight: int
    next: int
    last: int
    num: int
    counter: int
    id: int
    flags: int
    len: int
    addr: int


def packed_bytes(entries: int) -> int:
    """Return how long a packed region of so many entries is."""
    return ctypes.sizeof(PackedHeader) + entries * ctypes.sizeof(PackedEntry)


@dataclass(frozen=True, slots=True)
class Taken:
    """
    A chain in a packed region.

    Args:
        entries: In order.
        descriptors: What they say.
    """

    entries: tuple[int, ...]
    descriptors: tuple[Descriptor, ...]


class PackedRegion:
    """
    Entries that are free, and chains of entries that are not.

    Args:
        memory: Where it is, long enough.
        entries: How many it has; the ring may be smaller.
    """

    def __init__(self, memory: Piece, entries: int) -> None:
        host, _ = memory
        self._header = PackedHeader.from_address(host)
        at = host + ctypes.sizeof(PackedHeader)
        self._entries = (PackedEntry * entries).from_address(at)
        self._next: list[int] = []
        self._free = 0
        self._counter = 0

    def forget(self) -> None:
        """Have it made anew by the next `recover`."""
        self._header.version = 0

    # ---- what a predecessor left --------------------------------------------------------

    def recover(
        self, size: int, used: int, is_available: Callable[[int], bool]
    ) -> tuple[int, list[Taken]] | None:
        """
        Find out what a predecessor had taken.

        Args:
            size: Of the ring.
            used: Next descriptor to use and its wrap counter, as the base says.
            is_available: Whether the ring's descriptor at such a place is, in its round.

        Returns:
            The next descriptor to use, as the region says, and chains in the order they were
            taken; None: nobody was here before.

        Raises:
            Broken: No back-end has left it like that.
        """
        if self._header.version == 0:
            self._initialise(used)
            return None
        check(self._header, len(self._entries))
        for index in (self._header.used_idx, self._header.old_used_idx):
            if index >= size:
                raise Broken(Reason.INFLIGHT, HEADER, index)
        used = self._settle_batch(is_available)
        self._next = [entry.next for entry in self._entries]
        taken = self._read_entries(size)
        if taken:
            self._counter = max(counter for counter, _ in taken) + 1
        return used, [chain for _, chain in sorted(taken, key=lambda one: (one[0], one[1].entries))]

    def _initialise(self, used: int) -> None:
        ctypes.memset(ctypes.addressof(self._entries), 0, ctypes.sizeof(self._entries))
        self._next = list(range(1, len(self._entries) + 1))
        for entry, following in zip(self._entries, self._next, strict=True):
            entry.next = following
        self._header.features = 0
        self._header.desc_num = len(self._entries)
        self._header.free_head = self._header.old_free_head = 0
        self._store_used(used)
        self._store_old_used(used)
        self._header.version = VERSION

    def _store_used(self, used: int) -> None:
        self._header.used_idx = used & ~PACKED_WRAP
        self._header.used_wrap = used & PACKED_WRAP != 0

    def _store_old_used(self, used: int) -> None:
        self._header.old_used_idx = used & ~PACKED_WRAP
        self._header.old_used_wrap = used & PACKED_WRAP != 0

    def _settle_batch(self, is_available: Callable[[int], bool]) -> int:
        """Finish the last batch if the driver has got it back, else forget it; return its end."""
        header = self._header
        used = header.used_idx | PACKED_WRAP * (header.used_wrap != 0)
        old = header.old_used_idx | PACKED_WRAP * (header.old_used_wrap != 0)
        # Its first element is published last, and tells of all.
        given_back = used != old and not is_available(old)
        self._free = header.free_head if given_back else header.old_free_head
        header.free_head = header.old_free_head = self._free
        settled = used if given_back else old
        self._store_used(settled)
        self._store_old_used(settled)
        return settled

    def _read_entries(self, size: int) -> list[tuple[int, Taken]]:
        """Return counter and chain of what is taken; every entry is of one of them, or free."""
        met = self._read_free()
        taken: list[tuple[int, Taken]] = []
        room = size
        for head, entry in enumerate(self._entries):
            if head not in met and entry.inflight == 1:
                chain = self._read_chain(head, met, room)
                room -= len(chain.descriptors)
                taken.append((entry.counter, chain))
        for index in range(len(self._entries)):
            if index not in met:
                raise Broken(Reason.INFLIGHT, index, 0)
        return taken

    def _read_free(self) -> set[int]:
        """Return the free entries; whatever they say, nothing of them is in flight."""
        met: set[int] = set()
        at, index = HEADER, self._free
        while index != len(self._entries):
            self._meet(met, at, index)
            self._entries[index].inflight = 0
            at, index = index, self._next[index]
        return met

    def _meet(self, met: set[int], at: int, index: int) -> None:
        if index >= len(self._entries) or index in met:
            raise Broken(Reason.INFLIGHT, at, index)
        met.add(index)

    def _read_chain(self, head: int, met: set[int], room: int) -> Taken:
        first = self._entries[head]
        num, last = first.num, first.last
        chain: list[int] = []
        at, index = head, head
        for _ in range(num):
            self._meet(met, at, index)
            chain.append(index)
            at, index = index, self._next[index]
        if at != last:
            raise Broken(Reason.INFLIGHT, head, last)
        if not 1 <= num <= room:
            raise Broken(Reason.INFLIGHT, head, num)
        return Taken(tuple(chain), tuple(self._copy(index) for index in chain))

    def _copy(self, index: int) -> Descriptor:
        entry = self._entries[index]
        return Descriptor(entry.addr, entry.len, entry.flags, entry.id)

    # ---- while we live ------------------------------------------------------------------

    def mark(self, descriptors: Sequence[Descriptor]) -> Taken:
        """Note that a chain is taken."""
        chain: list[int] = []
        for descriptor in descriptors:
            chain.append(self._next[chain[-1]] if chain else self._free)
            entry = self._entries[chain[-1]]
            entry.addr, entry.len = descriptor.address, descriptor.length
            entry.flags, entry.id = descriptor.flags, descriptor.link
        first = self._entries[chain[0]]
        first.counter = self._counter
        self._counter += 1
        first.num, first.last = len(chain), chain[-1]
        first.inflight = 1
        self._free = self._header.free_head = self._next[chain[-1]]
        # Taken with this store, and not before.
        self._header.old_free_head = self._free
        return Taken(tuple(chain), tuple(descriptors))

    def prepare(self, chains: Sequence[Taken], used: int) -> None:
        """Note what is about to be given back, and that *used* is the next descriptor then."""
        for chain in chains:
            last = chain.entries[-1]
            self._next[last] = self._entries[last].next = self._free
            self._free = self._header.free_head = chain.entries[0]
        self._store_used(used)

    def commit(self, chains: Sequence[Taken], used: int) -> None:
        """Note that it was given back."""
        for chain in chains:
            self._entries[chain.entries[0]].inflight = 0
        self._header.old_free_head = self._free
        self._store_old_used(used)
