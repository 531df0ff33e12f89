"""
The split virtqueue: pop, push, should_call, arm, quiet.

Everything in the ring may change while we look: each field is read once into a local, and only the
local is checked and used.  Python has no full fence.  On x86 the locks of the interpreter make
one; what could still slip through elsewhere is caught by the worker's second look (engine.py).

Source: virtio 1.3, 2.7.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from vhostblk.blk.request import Buffer
from vhostblk.engine.api import Fault
from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.memory import (
    GuestMemory,
    Part,
    copy_in,
    copy_out,
    load16,
    store16,
)
from vhostblk.engine.reference.needs import Needs
from vhostblk.engine.reference.record import Trace
from vhostblk.memory.space import Access, Denied, Missing
from vhostblk.spec.virtio_ring import (
    AVAIL_ELEM_SIZE,
    AVAIL_F_NO_INTERRUPT,
    AVAIL_HEADER_SIZE,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    USED_ELEM_SIZE,
    USED_F_NO_NOTIFY,
    USED_HEADER_SIZE,
)

_DESC = struct.Struct("<QIHH")
_USED_ELEM = struct.Struct("<II")
_IDX = 2  # offset of idx in both rings; flags are at 0
_U16 = 0xFFFF
_ADDRESSES = 1 << 64
MAX_TABLE = 32768
"""Descriptors of an indirect table at most; virtio 1.3, 2.6."""


class Broken(Exception):  # noqa: N818 - the ring's state, not an error of ours
    """
    The ring is not a ring.

    Args:
        reason: In which way.
        index: Avail or descriptor index it was met at.
        value: The offending value.
    """

    def __init__(self, reason: Reason, index: int, value: int) -> None:
        super().__init__(reason.text)
        self.fault = Fault(reason.text, index, value)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One descriptor, as it was when it was read."""

    address: int
    length: int
    flags: int
    next: int

    @property
    def buffer(self) -> Buffer:
        """Return the buffer it names."""
        return Buffer(self.address, self.length, bool(self.flags & DESC_F_WRITE))


@dataclass(frozen=True, slots=True)
class Chain:
    """
    What the driver made available at once.

    Args:
        head: Its name towards the driver.
        buffers: In order, indirect ones resolved.
    """

    head: int
    buffers: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """
    How far a ring was worked on.

    Args:
        avail: Next avail entry to take.
        used: Next used element to write; None: as the used ring itself says.
    """

    avail: int
    used: int | None


class SplitRing:
    """
    A split virtqueue in guest memory.

    Args:
        size: Descriptors, a power of two.
        desc: The descriptor table.
        avail: The avail ring.
        used: The used ring.
        position: Where to go on.
        indirect: INDIRECT_DESC was acked.
    """

    def __init__(  # noqa: PLR0913 - a ring has three parts
        self,
        *,
        size: int,
        desc: Part,
        avail: Part,
        used: Part,
        position: Position,
        indirect: bool,
    ) -> None:
        self.size = size
        self._desc = desc
        self._avail = avail
        self._used = used
        self._indirect = indirect
        self._next_avail = position.avail
        self._next_used = load16(used.at(_IDX)) if position.used is None else position.used
        # A back-end that died may have left its driver silenced.
        self._quiet = True

    def position(self) -> Position:
        """Return how far the ring was worked on."""
        return Position(self._next_avail, self._next_used)

    def rewind(self, position: Position) -> None:
        """Put back what was popped since *position*, of which nothing was pushed."""
        self._next_avail = position.avail

    def pop(self, memory: GuestMemory, trace: Trace) -> Chain | None:
        """
        Take the next chain.

        Args:
            memory: Where indirect tables and buffers are.
            trace: Where what it names is noted.

        Returns:
            The chain; None where there is none.

        Raises:
            Broken: There is one, and it is none; nothing was taken.
            Missing: A part of it must be asked for; nothing was taken.

        Spec: virtio 1.3, 2.7.13, 2.7.14.
        """
        idx = load16(self._avail.at(_IDX))
        ahead = (idx - self._next_avail) & _U16
        if ahead == 0:
            return None
        if ahead > self.size:
            raise Broken(Reason.AVAIL_INDEX, self._next_avail, idx)
        slot = self._next_avail % self.size
        head = load16(self._avail.at(AVAIL_HEADER_SIZE + AVAIL_ELEM_SIZE * slot))
        if head >= self.size:
            raise Broken(Reason.HEAD, self._next_avail, head)
        try:
            chain = Chain(head, tuple(self._walk(head, memory, trace)))
        except Denied as denied:
            raise Broken(Reason.OUTSIDE, head, denied.iova) from None
        self._next_avail = (self._next_avail + 1) & _U16
        return chain

    def _walk(self, head: int, memory: GuestMemory, trace: Trace) -> list[Buffer]:
        """Follow a chain through the descriptor table.  Spec: virtio 1.3, 2.7.5."""
        trace.begun = True
        needs = Needs(memory, trace)
        buffers: list[Buffer] = []
        index = head
        for _ in range(self.size):
            raw = copy_in(self._desc.at(DESC_SIZE * index), DESC_SIZE)
            descriptor = Descriptor(*_DESC.unpack(raw))
            if descriptor.flags & DESC_F_INDIRECT:
                table = self._table(descriptor, index, memory)
                try:
                    return buffers + _walk_table(table, needs)
                finally:
                    trace.see_table(table.address, table.length, outside=table.outside)
            buffers.append(descriptor.buffer)
            needs.see(descriptor.buffer)
            if not descriptor.flags & DESC_F_NEXT:
                return buffers
            index = _next(descriptor, index, self.size)
        raise Broken(Reason.LOOP, head, self.size)

    def _table(self, named: Descriptor, at: int, memory: GuestMemory) -> "IndirectTable":
        """Check what a descriptor says of its table.  Spec: virtio 1.3, 2.7.5.3."""
        size, rest = divmod(named.length, DESC_SIZE)
        usable = self._indirect and not named.flags & DESC_F_NEXT
        if not usable or rest or not 1 <= size <= MAX_TABLE:
            raise Broken(Reason.INDIRECT, at, named.length)
        if named.address + named.length >= _ADDRESSES:
            raise Broken(Reason.TABLE_ADDRESS, at, named.address)
        return IndirectTable(named, at, memory)

    def push(self, done: Iterable[tuple[int, int]]) -> None:
        """
        Give chains back.

        Args:
            done: Head of each, and how many bytes were written into it.

        Spec: virtio 1.3, 2.7.8.
        """
        for head, written in done:
            offset = USED_HEADER_SIZE + USED_ELEM_SIZE * (self._next_used % self.size)
            copy_out(self._used.at(offset), _USED_ELEM.pack(head, written))
            self._next_used = (self._next_used + 1) & _U16
        # Published last: the driver must not see the index before the elements.
        store16(self._used.at(_IDX), self._next_used)

    def should_call(self) -> bool:
        """Say whether the driver wants to know.  Spec: virtio 1.3, 2.7.7."""
        return not load16(self._avail.at(0)) & AVAIL_F_NO_INTERRUPT

    def arm(self) -> bool:
        """Ask for kicks again; return whether entries slipped in.  Spec: virtio 1.3, 2.7.10."""
        if self._quiet:
            store16(self._used.at(0), 0)
        self._quiet = False
        return load16(self._avail.at(_IDX)) != self._next_avail

    def quiet(self) -> None:
        """Tell the driver that kicks are not needed now."""
        if not self._quiet:
            store16(self._used.at(0), USED_F_NO_NOTIFY)
        self._quiet = True


def _next(descriptor: Descriptor, index: int, size: int) -> int:
    if descriptor.next >= size:
        raise Broken(Reason.NEXT, index, descriptor.next)
    return descriptor.next


class IndirectTable:
    """
    An indirect table.

    Args:
        named: The descriptor that says where it is; checked.
        at: Index of that.
        memory: What its address means.
    """

    def __init__(self, named: Descriptor, at: int, memory: GuestMemory) -> None:
        self.address = named.address
        self.length = named.length
        self.size = named.length // DESC_SIZE
        self.at = at
        self.outside = False
        """What was read of it so far is denied or noted."""
        self._memory = memory

    def load(self, index: int) -> Descriptor:
        """
        Copy a descriptor out of it, once.

        Raises:
            Missing: It must be asked for, and with it the rest of the table.
            Denied: To go there is fatal.
            Broken: It may not be read.
        """
        address = self.address + DESC_SIZE * index
        try:
            found = self._memory.find(Buffer(address, DESC_SIZE, writable=False))
        except Missing as missing:
            needed = self.address + self.length - missing.iova
            raise Missing(missing.iova, needed, missing.access) from None
        except Denied as denied:
            self.outside = True
            if denied.fatal:
                raise
            raise Broken(Reason.TABLE_ADDRESS, index, self.address) from None
        self.outside |= any(Access.NOTED in one.access for one in found)
        raw = b"".join(copy_in(one.host, one.length) for one in found)
        return Descriptor(*_DESC.unpack(raw))


def _walk_table(table: IndirectTable, needs: Needs) -> list[Buffer]:
    """Follow a chain through an indirect table."""
    buffers: list[Buffer] = []
    index = 0
    for _ in range(table.size):
        descriptor = table.load(index)
        if descriptor.flags & DESC_F_INDIRECT:
            raise Broken(Reason.INDIRECT, index, descriptor.length)
        buffers.append(descriptor.buffer)
        needs.see(descriptor.buffer)
        if not descriptor.flags & DESC_F_NEXT:
            return buffers
        index = _next(descriptor, index, table.size)
    raise Broken(Reason.LOOP, table.at, table.size)
