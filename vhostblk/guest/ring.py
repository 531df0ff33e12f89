"""
The driver's side of a split virtqueue.

Ordering.  Python has no memory fence.  Stores reach the device in program order on x86 (each is one
machine store, with an interpreter between them), which is what publishing needs: descriptors, then
the available element, then the index.  What x86 does reorder is a store followed by a load of
something else, and the protocol has two such places; neither is relied upon here:

* publish, then look whether the device wants a kick: we kick always, whatever the device says,
  unless a test asks for ``honour_notify`` (and so for the risk of a kick that is lost);
* arm used_event, then look whether something was used meanwhile: whoever waits for a call looks at
  the ring again after a short while (``queue.RECHECK``), so a lost call costs time and is counted.

On machines that reorder stores a device that polls could see the index before the element.  One
that is woken by the kick cannot: the eventfd's lock lies between.

Spec: virtio 1.3, 2.7.
"""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vhostblk.guest.errors import RingError
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.shape import Buffer, RingAddresses, RingShape, Used, writable_bytes
from vhostblk.spec import virtio_ring as vr

DESC = struct.Struct("<QIHH")
USED_ELEM = struct.Struct("<II")
WRAP = 0xFFFF


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One entry of a descriptor table, as the driver writes it."""

    addr: int
    length: int
    flags: int = 0
    next: int = 0

    def pack(self) -> bytes:
        """Return its 16 bytes."""
        return DESC.pack(self.addr, self.length, self.flags, self.next)


@dataclass(frozen=True, slots=True)
class _Chain:
    """
    A chain in flight.

    Args:
        descriptors: Which it has, the head first.
        writable: Bytes the device may write.
    """

    descriptors: list[int]
    writable: int


class SplitRing:
    """
    A ring and what the driver knows of it.

    Args:
        memory: Where it lies.
        addresses: GPAs of its parts.
        size: Descriptors, a power of two up to 32768.
        base: Index of the first available and of the first used entry, modulo 65536.
        event_idx: EVENT_IDX was negotiated.
        in_order: IN_ORDER was: one used element may stand for all chains before it.
    """

    def __init__(  # noqa: PLR0913 - where and how a ring is
        self,
        memory: GuestMemory,
        addresses: RingAddresses,
        size: int,
        *,
        base: int = 0,
        event_idx: bool = False,
        in_order: bool = False,
    ) -> None:
        if size < 1 or size > 1 << 15 or size & (size - 1):
            raise RingError(f"a split ring cannot have {size} descriptors")
        self.memory = memory
        self.addresses = addresses
        self.size = size
        self.event_idx = event_idx
        self.in_order = in_order
        self.avail_idx = base & WRAP
        """Index of the next available entry, as last published."""
        self.last_used = base & WRAP
        """Index of the next used entry to look at."""
        self._published = 0
        self._free = list(range(size))
        self._chains: dict[int, _Chain] = {}
        self._order: dict[int, None] = {}  # heads, as published
        self._clear()

    @property
    def shape(self) -> RingShape:
        """Return its size and format."""
        return RingShape(self.size)

    @property
    def free_descriptors(self) -> int:
        """Return how many descriptors are unused."""
        return len(self._free)

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Return the heads the device has not given back, oldest first."""
        return tuple(self._chains)

    def add(self, buffers: Sequence[Buffer]) -> int:
        """
        Write a chain of direct descriptors; the device does not see it yet.

        Args:
            buffers: Readable ones first, as the standard wants it (not checked).

        Returns:
            The head.

        Raises:
            RingError: Not enough descriptors are free.
        """
        chain = self.take(len(buffers), writable=writable_bytes(buffers))
        for i, buffer in enumerate(buffers):
            flags = vr.DESC_F_WRITE if buffer.writable else 0
            after = chain[i + 1] if i + 1 < len(chain) else None
            self._link(chain[i], buffer, flags, after)
        return chain[0]

    def add_indirect(self, direct: Sequence[Buffer], table: int, buffers: Sequence[Buffer]) -> int:
        """
        Write a chain that ends in an indirect table; the device does not see it yet.

        Args:
            direct: Buffers in front of the table; usually none.
            table: GPA of the table, already written.
            buffers: Those in the table.

        Returns:
            The head.

        Raises:
            RingError: Not enough descriptors are free.
        """
        writable = writable_bytes(direct) + writable_bytes(buffers)
        chain = self.take(len(direct) + 1, writable=writable)
        for i, buffer in enumerate(direct):
            flags = vr.DESC_F_WRITE if buffer.writable else 0
            self._link(chain[i], buffer, flags, chain[i + 1])
        last = Descriptor(table, len(buffers) * vr.DESC_SIZE, vr.DESC_F_INDIRECT)
        self.write_descriptor(chain[-1], last)
        return chain[0]

    def table(self, buffers: Sequence[Buffer]) -> bytes:
        """Return the contents of an indirect table."""
        return indirect_table(buffers)

    def take(self, count: int, *, writable: int = 0) -> list[int]:
        """
        Take free descriptors as one chain, of which the first is the head; write them yourself.

        Args:
            count: How many, at least 1.
            writable: Bytes the device may write there.

        Returns:
            Their indices.

        Raises:
            RingError: That many are not free.
        """
        if not 1 <= count <= len(self._free):
            raise RingError(
                f"a chain of {count} descriptors, but {len(self._free)} of {self.size} are free"
            )
        chain, self._free = self._free[:count], self._free[count:]
        self._chains[chain[0]] = _Chain(chain, writable)
        return chain

    def give_back(self, head: int) -> None:
        """Free the descriptors of a chain the device will not (or did already) complete."""
        self._free.extend(self._chains.pop(head).descriptors)
        self._order.pop(head, None)

    def publish(self, *heads: int) -> None:
        """Make chains available: elements first, then one store of the index."""
        for i, head in enumerate(heads):
            self.write_avail(self.avail_idx + i, head)
            self._order[head] = None
        self.set_avail_idx(self.avail_idx + len(heads))
        self._published = len(heads)

    def pop_used(self) -> list[Used]:
        """
        Take what the device has used, free its descriptors, and ask to be called for the next.

        Returns:
            The elements, in the order of the ring.

        Raises:
            RingError: A head that is not in flight, or not its turn, or an index that ran ahead.
        """
        popped: list[Used] = []
        while True:
            new = (self.used_idx() - self.last_used) & WRAP
            if new > len(self._chains):
                raise RingError(
                    f"the used index is {self.used_idx()}: {new} new entries, "
                    f"but {len(self._chains)} chains are in flight"
                )
            end = len(popped) + new
            while len(popped) < end:
                popped.extend(self._pop_batch(end - len(popped)))
            if not self.event_idx or not new:
                return popped
            # Look again after arming: what came between was not going to be called for.
            self.set_used_event(self.last_used)

    def has_used(self) -> bool:
        """Tell whether the device has given something back that was not taken."""
        return self.used_idx() != self.last_used

    def lost_base(self, known: int) -> int:  # noqa: ARG002 - the other format needs it
        """Return what SET_VRING_BASE says when the device died: where it had got to, as QEMU."""
        return self.used_idx()

    def wants_kick(self) -> bool:
        """
        Tell whether the device asked to be kicked for what the last ``publish`` added.

        Returns:
            Its answer, which without a fence may be a stale one.
        """
        if not self.event_idx:
            flags = self.memory.load_u16(self.addresses.used)
            return not flags & vr.USED_F_NO_NOTIFY
        return need_event(self.avail_event(), self.avail_idx, self.avail_idx - self._published)

    def quiet(self) -> None:
        """Ask the device not to call (a hint; without EVENT_IDX only)."""
        self.memory.store_u16(self.addresses.avail, vr.AVAIL_F_NO_INTERRUPT)

    def used_idx(self) -> int:
        """Return the device's index."""
        return self.memory.load_u16(self.addresses.used + 2)

    def avail_event(self) -> int:
        """Return the word behind the used ring."""
        at = vr.USED_HEADER_SIZE + vr.USED_ELEM_SIZE * self.size
        return self.memory.load_u16(self.addresses.used + at)

    def set_used_event(self, value: int) -> None:
        """Write the word behind the available ring."""
        at = vr.AVAIL_HEADER_SIZE + vr.AVAIL_ELEM_SIZE * self.size
        self.memory.store_u16(self.addresses.avail + at, value & WRAP)

    def set_avail_idx(self, value: int) -> None:
        """Store the index; the device may look from now on."""
        self.avail_idx = value & WRAP
        self.memory.store_u16(self.addresses.avail + 2, self.avail_idx)

    def write_avail(self, index: int, head: int) -> None:
        """Write the element of entry *index*, any head."""
        slot = (index & WRAP) % self.size
        at = vr.AVAIL_HEADER_SIZE + vr.AVAIL_ELEM_SIZE * slot
        self.memory.store_u16(self.addresses.avail + at, head)

    def write_descriptor(self, index: int, descriptor: Descriptor) -> None:
        """Write an entry of the descriptor table, any contents."""
        self.memory.write(self.addresses.desc + vr.DESC_SIZE * index, descriptor.pack())

    def _link(self, index: int, buffer: Buffer, flags: int, after: int | None) -> None:
        if after is not None:
            flags |= vr.DESC_F_NEXT
        self.write_descriptor(index, Descriptor(buffer.gpa, buffer.length, flags, after or 0))

    def _pop_batch(self, new: int) -> list[Used]:
        slot = self.last_used % self.size
        at = self.addresses.used + vr.USED_HEADER_SIZE + vr.USED_ELEM_SIZE * slot
        head, length = USED_ELEM.unpack(self.memory.read(at, USED_ELEM.size))
        if head not in self._chains:
            raise RingError(f"the device used head {head} at {self.last_used}: not in flight")
        skipped = list(itertools.takewhile(lambda one: one != head, self._order))
        # In order it stands for those before it as well, which were used completely.
        done = [Used(one, self._chains[one].writable) for one in skipped] if self.in_order else []
        if len(done) >= new:
            raise RingError(
                f"the device used head {head} at {self.last_used}, which is number "
                f"{len(done) + 1} in order, and moved its index by {new}"
            )
        done.append(Used(head, length))
        self.last_used = (self.last_used + len(done)) & WRAP
        for one in done:
            self.give_back(one.head)
        return done

    def _clear(self) -> None:
        base = self.avail_idx
        self.memory.write(self.addresses.desc, bytes(self.shape.desc_bytes))
        self.memory.write(self.addresses.avail, bytes(self.shape.avail_bytes))
        self.memory.write(self.addresses.used, bytes(self.shape.used_bytes))
        # A ring that begins elsewhere than 0 was in use before: its memory says so too.
        self.memory.store_u16(self.addresses.avail + 2, base)
        self.memory.store_u16(self.addresses.used + 2, base)
        self.set_used_event(base)


def need_event(event: int, new: int, old: int) -> bool:
    """
    Tell whether going from index *old* to *new* steps over *event*.

    Args:
        event: The index the other side wants to hear of.
        new: Index after.
        old: Index before.

    Returns:
        True if it does, all modulo 65536.

    Spec: virtio 1.3, 2.7.10.
    """
    return (new - event - 1) & WRAP < (new - old) & WRAP


def indirect_table(buffers: Sequence[Buffer]) -> bytes:
    """
    Pack an indirect table that chains *buffers* in order.

    Args:
        buffers: At least one.

    Returns:
        16 bytes for each.

    Spec: virtio 1.3, 2.7.5.3.
    """
    last = len(buffers) - 1
    return b"".join(
        Descriptor(
            buffer.gpa,
            buffer.length,
            (vr.DESC_F_WRITE if buffer.writable else 0) | (vr.DESC_F_NEXT if i < last else 0),
            i + 1 if i < last else 0,
        ).pack()
        for i, buffer in enumerate(buffers)
    )
