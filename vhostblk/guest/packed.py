"""
The driver's side of a packed virtqueue.

One ring of descriptors, which driver and device overwrite in turn; two bits of each say whose it is
in this lap.  A chain is written when it is published, the flags of the first descriptor last.
About ordering see `ring`: stores reach the device in program order on x86.

Spec: virtio 1.3, 2.8.
"""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vhostblk.guest.errors import RingError
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.shape import Buffer, RingAddresses, RingShape, Used, writable_bytes
from vhostblk.spec import virtio_ring as vr

DESC = struct.Struct("<QIHH")
USED = struct.Struct("<8xIHH")
EVENT = struct.Struct("<HH")
FLAGS_AT = 14
"""Bytes in front of a descriptor's flags."""
MAX_SIZE = 1 << 15
INDEX_MASK = vr.PACKED_WRAP - 1
START = vr.PACKED_WRAP << 16 | vr.PACKED_WRAP
"""The base of a ring that was never used: twice index 0, wrap counter 1."""
NO_ID = 0xFFFF
"""What a descriptor that is not the last of its chain has for an id: nobody reads it."""


@dataclass(frozen=True, slots=True)
class PackedDescriptor:
    """One descriptor, as the driver writes it; *flags* without those of the lap."""

    addr: int
    length: int
    id: int = NO_ID
    flags: int = 0

    def pack(self) -> bytes:
        """Return its 16 bytes."""
        return DESC.pack(self.addr, self.length, self.id, self.flags)


@dataclass(frozen=True, slots=True)
class Position:
    """
    A place in the ring, and in which lap.

    Args:
        index: Of the descriptor.
        wrap: The wrap counter, which changes with every lap.
    """

    index: int
    wrap: bool

    @classmethod
    def parse(cls, half: int) -> "Position":
        """Read one half of a base."""
        return cls(half & INDEX_MASK, bool(half & vr.PACKED_WRAP))

    @property
    def half(self) -> int:
        """Return it as half a base, or as an event."""
        return self.index | (vr.PACKED_WRAP if self.wrap else 0)

    def plus(self, count: int, size: int) -> "Position":
        """Return the place *count* descriptors further."""
        laps, index = divmod(self.index + count, size)
        return Position(index, self.wrap ^ bool(laps % 2))

    @property
    def available(self) -> int:
        """Return the flags of a descriptor that is made available here."""
        return vr.PACKED_DESC_F_AVAIL if self.wrap else vr.PACKED_DESC_F_USED

    @property
    def used(self) -> int:
        """Return the flags of a descriptor that was used here."""
        return vr.PACKED_DESC_F_AVAIL | vr.PACKED_DESC_F_USED if self.wrap else 0


def wire_base(index: int, *, wrap: bool = True) -> int:
    """Return the base of a ring with nothing in flight that goes on at *index*."""
    half = Position(index, wrap).half
    return half << 16 | half


@dataclass(frozen=True, slots=True)
class _Chain:
    """A chain: its descriptors, and how much of it the device may write, in bytes."""

    descriptors: tuple[PackedDescriptor, ...]
    writable: int


class PackedRing:
    """
    A ring and what the driver knows of it.

    Args:
        memory: Where it lies.
        addresses: GPAs of its parts.
        size: Descriptors, up to 32768.
        base: Where it begins, as in SET_VRING_BASE, with nothing in flight.
        event_idx: EVENT_IDX was negotiated.
        in_order: IN_ORDER was: one used descriptor may stand for all chains before it.
    """

    def __init__(  # noqa: PLR0913 - where and how a ring is
        self,
        memory: GuestMemory,
        addresses: RingAddresses,
        size: int,
        *,
        base: int = START,
        event_idx: bool = False,
        in_order: bool = False,
    ) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise RingError(f"a packed ring cannot have {size} descriptors")
        self.memory = memory
        self.addresses = addresses
        self.size = size
        self.event_idx = event_idx
        self.in_order = in_order
        self.avail = Position.parse(base & 0xFFFF)
        """Where the next chain is made available."""
        self.used = Position.parse(base >> 16)
        """Where the device uses the next one."""
        if self.avail != self.used or self.avail.index >= size:
            raise RingError(f"a packed ring of {size} descriptors cannot begin at {base:#x}")
        self._published = 0
        self._free_ids = list(range(size))
        self._chains: dict[int, _Chain] = {}
        self._order: dict[int, None] = {}  # ids, as published
        self._clear()

    @property
    def shape(self) -> RingShape:
        """Return its size and format."""
        return RingShape(self.size, packed=True)

    @property
    def free_descriptors(self) -> int:
        """Return how many descriptors are unused."""
        return self.size - sum(len(chain.descriptors) for chain in self._chains.values())

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Return the buffer ids the device has not given back, oldest first."""
        return tuple(self._chains)

    def add(self, buffers: Sequence[Buffer]) -> int:
        """
        Make a chain of direct descriptors; the device does not see it yet.

        Args:
            buffers: Readable ones first, as the standard wants it (not checked).

        Returns:
            Its buffer id.

        Raises:
            RingError: Not enough descriptors are free.
        """
        return self.take([_descriptor(b) for b in buffers], writable=writable_bytes(buffers))

    def add_indirect(self, direct: Sequence[Buffer], table: int, buffers: Sequence[Buffer]) -> int:
        """
        Make a chain that ends in an indirect table; the device does not see it yet.

        Args:
            direct: Buffers in front of the table; usually none.
            table: GPA of the table, already written.
            buffers: Those in the table.

        Returns:
            Its buffer id.

        Raises:
            RingError: Not enough descriptors are free.
        """
        length = len(buffers) * vr.DESC_SIZE
        last = PackedDescriptor(table, length, flags=vr.DESC_F_INDIRECT)
        writable = writable_bytes(direct) + writable_bytes(buffers)
        return self.take([*map(_descriptor, direct), last], writable=writable)

    def table(self, buffers: Sequence[Buffer]) -> bytes:
        """Return the contents of an indirect table: one entry behind the other, without NEXT."""
        return b"".join(replace(_descriptor(buffer), id=0).pack() for buffer in buffers)

    def take(self, descriptors: Sequence[PackedDescriptor], *, writable: int = 0) -> int:
        """
        Take room for a chain of descriptors, which ``publish`` links, numbers and writes.

        Args:
            descriptors: At least one.
            writable: Bytes the device may write there.

        Returns:
            Its buffer id.

        Raises:
            RingError: That many are not free.
        """
        free = self.free_descriptors
        if not 1 <= len(descriptors) <= free:
            raise RingError(
                f"a chain of {len(descriptors)} descriptors, but {free} of {self.size} are free"
            )
        head = self._free_ids.pop(0)
        last = len(descriptors) - 1
        linked = [
            replace(one, id=head) if i == last else replace(one, flags=one.flags | vr.DESC_F_NEXT)
            for i, one in enumerate(descriptors)
        ]
        self._chains[head] = _Chain(tuple(linked), writable)
        return head

    def give_back(self, head: int) -> None:
        """Free the descriptors of a chain the device will not (or did already) complete."""
        del self._chains[head]
        self._order.pop(head, None)
        self._free_ids.append(head)

    def publish(self, *heads: int) -> None:
        """Make chains available: all descriptors, then the flags of the first."""
        self._order.update(dict.fromkeys(heads))
        self.write([one for head in heads for one in self._chains[head].descriptors])

    def write(self, descriptors: Sequence[PackedDescriptor], *, lie: int = 0) -> None:
        """
        Write descriptors as they are, available from the next free one on.

        Args:
            descriptors: Any.
            lie: Bits to turn over in the flags of the first.
        """
        first = self.avail
        for i, one in enumerate(descriptors):
            at = first.plus(i, self.size)
            address = self._at(at.index)
            self.memory.write(address, one.pack()[:FLAGS_AT])
            if i:
                self.memory.store_u16(address + FLAGS_AT, one.flags | at.available)
        if descriptors:
            flags = (descriptors[0].flags | first.available) ^ lie
            self.memory.store_u16(self._at(first.index) + FLAGS_AT, flags)
        self.avail = first.plus(len(descriptors), self.size)
        self._published = len(descriptors)

    def pop_used(self) -> list[Used]:
        """
        Take what the device has used, free its descriptors, and ask to be called for the next.

        Returns:
            The chains, in the order of the ring.

        Raises:
            RingError: An id that is not in flight.
        """
        popped: list[Used] = []
        while True:
            before = len(popped)
            while self.has_used():
                popped.extend(self._pop_batch())
            if not self.event_idx or len(popped) == before:
                return popped
            # Look again after arming: what came between was not going to be called for.
            self.memory.store_u16(self.addresses.avail, self.used.half)

    def has_used(self) -> bool:
        """Tell whether the device has given something back that was not taken."""
        flags = self.memory.load_u16(self._at(self.used.index) + FLAGS_AT)
        both = vr.PACKED_DESC_F_AVAIL | vr.PACKED_DESC_F_USED
        return flags & both == self.used.used

    def wants_kick(self) -> bool:
        """
        Tell whether the device asked to be kicked for what the last ``publish`` added.

        Returns:
            Its answer, which without a fence may be a stale one.

        Spec: virtio 1.3, 2.8.10.
        """
        half, flags = EVENT.unpack(self.memory.read(self.addresses.used, EVENT.size))
        if flags != vr.PACKED_EVENT_DESC or not self.event_idx:
            return bool(flags != vr.PACKED_EVENT_DISABLE)
        event = Position.parse(half)
        # Counted from the start of our lap, so one of the lap before is less than 0.
        at = event.index if event.wrap == self.avail.wrap else event.index - self.size
        return self.avail.index - self._published <= at < self.avail.index

    def quiet(self) -> None:
        """Ask the device not to call."""
        self.memory.store_u16(self.addresses.avail + 2, vr.PACKED_EVENT_DISABLE)

    def lost_base(self, known: int) -> int:
        """Return what SET_VRING_BASE says when the device died: what QEMU knew last."""
        return known

    def read_descriptor(self, index: int) -> PackedDescriptor:
        """Read a descriptor, with the flags of its lap."""
        return PackedDescriptor(*DESC.unpack(self.memory.read(self._at(index), DESC.size)))

    def _at(self, index: int) -> int:
        return self.addresses.desc + vr.DESC_SIZE * index

    def _pop_batch(self) -> list[Used]:
        where = self.used
        length, head, flags = USED.unpack(self.memory.read(self._at(where.index), USED.size))
        if head not in self._order:
            raise RingError(f"the device used id {head} at {where.index}: not in flight")
        skipped = list(itertools.takewhile(lambda one: one != head, self._order))
        done = [Used(one, self._chains[one].writable) for one in skipped] if self.in_order else []
        # Without WRITE nothing was written, and the length is reserved.
        done.append(Used(head, length if flags & vr.DESC_F_WRITE else 0))
        for one in done:
            self.used = self.used.plus(len(self._chains[one.head].descriptors), self.size)
            self.give_back(one.head)
        return done

    def _clear(self) -> None:
        # What is before the place it begins at was used in this lap, the rest in the one before.
        before, after = self.avail.used, Position(0, not self.avail.wrap).used
        for index in range(self.size):
            flags = before if index < self.avail.index else after
            self.memory.write(self._at(index), PackedDescriptor(0, 0, 0, flags).pack())
        event = vr.PACKED_EVENT_DESC if self.event_idx else vr.PACKED_EVENT_ENABLE
        half = self.used.half if self.event_idx else 0
        self.memory.write(self.addresses.avail, EVENT.pack(half, event))
        self.memory.write(self.addresses.used, bytes(EVENT.size))


def _descriptor(buffer: Buffer) -> PackedDescriptor:
    flags = vr.DESC_F_WRITE if buffer.writable else 0
    return PackedDescriptor(buffer.gpa, buffer.length, flags=flags)
