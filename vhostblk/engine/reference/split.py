"""
The split virtqueue.

Everything in the ring may change while we look: each field is read once into a local, and only the
local is checked and used.  Python has no full fence.  On x86 the locks of the interpreter make
one; what could still slip through elsewhere is caught by the worker's second look (engine.py).

Source: virtio 1.3, 2.7.
"""

import struct
from collections import deque
from collections.abc import Sequence

from vhostblk.blk.request import Buffer
from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.inflight import HEADER
from vhostblk.engine.reference.inflight_split import SplitRegion
from vhostblk.engine.reference.memory import GuestMemory, copy_in, copy_out, load16, store16
from vhostblk.engine.reference.needs import Needs
from vhostblk.engine.reference.record import Trace
from vhostblk.engine.reference.ring import Broken, Chain, Descriptor, Done, Layout, batches
from vhostblk.engine.reference.table import IndirectTable
from vhostblk.memory.space import Denied
from vhostblk.spec.virtio_ring import (
    AVAIL_ELEM_SIZE,
    AVAIL_F_NO_INTERRUPT,
    AVAIL_HEADER_SIZE,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_SIZE,
    USED_ELEM_SIZE,
    USED_F_NO_NOTIFY,
    USED_HEADER_SIZE,
)

_DESC = struct.Struct("<QIHH")
_USED_ELEM = struct.Struct("<II")
_IDX = 2  # offset of idx in both rings; flags are at 0
_U16 = 0xFFFF


class SplitRing:
    """
    A split virtqueue in guest memory.

    Args:
        layout: Where it lives; its size is a power of two.
        base: Next avail entry to take.
        region: Where what is taken is noted; None: nowhere.
    """

    def __init__(self, layout: Layout, base: int, region: SplitRegion | None) -> None:
        self.layout = layout
        self.region = region
        self._again: deque[int] = deque()
        self._next_avail = base & _U16
        self._next_used = 0
        # A back-end that died may have left its driver silenced.
        self._quiet = True

    def load(self) -> None:
        """Read the used index: it is the ring's own, whatever the base says."""
        self._next_used = load16(self.layout.used.at(_IDX))
        if self.region is None:
            return
        heads = self.region.recover(self.layout.size, self._next_used)
        if heads is None:
            return
        # Each was made available, and taken, before whatever is taken next.
        self._again.extend(heads)
        self._next_avail = (self._next_used + len(heads)) & _U16
        available = (load16(self.layout.avail.at(_IDX)) - self._next_used) & _U16
        if len(heads) > available:
            raise Broken(Reason.INFLIGHT, HEADER, len(heads))

    def base(self) -> int:
        """Return the next avail entry to take."""
        return self._next_avail

    def places(self) -> tuple[int, int]:
        """Return the avail entry and the used entry that are next."""
        return self._next_avail, self._next_used

    def at(self) -> int:
        """Return the next avail entry to take."""
        return self._next_avail

    def pop(self, memory: GuestMemory, trace: Trace) -> Chain | None:
        """
        Look at the next chain.

        Raises:
            Broken: There is one, and it is none.
            Missing: A part of it must be asked for.

        Spec: virtio 1.3, 2.7.13, 2.7.14.
        """
        if self._again:
            return self._chain(self._again[0], memory, trace, again=True)
        size, avail = self.layout.size, self.layout.avail
        idx = load16(avail.at(_IDX))
        ahead = (idx - self._next_avail) & _U16
        if ahead == 0:
            return None
        if ahead > size:
            raise Broken(Reason.AVAIL_INDEX, self._next_avail, idx)
        slot = self._next_avail % size
        head = load16(avail.at(AVAIL_HEADER_SIZE + AVAIL_ELEM_SIZE * slot))
        if head >= size:
            raise Broken(Reason.HEAD, self._next_avail, head)
        return self._chain(head, memory, trace, again=False)

    def _chain(self, head: int, memory: GuestMemory, trace: Trace, *, again: bool) -> Chain:
        try:
            return Chain(head, head, tuple(self._walk(head, memory, trace)), again=again)
        except Denied as denied:
            raise Broken(Reason.OUTSIDE, head, denied.iova) from None

    def take(self, chain: Chain) -> None:
        """Take the chain that was popped last."""
        if chain.again:
            self._again.popleft()
            return
        if self.region is not None:
            self.region.mark(chain.name)
        self._next_avail = (self._next_avail + 1) & _U16

    def must_replay(self) -> bool:
        """Say whether a predecessor's chains are still to be popped."""
        return bool(self._again)

    def forget_region(self) -> None:
        """Note nothing more of what is taken."""
        self.region = None
        self._again.clear()

    def _walk(self, head: int, memory: GuestMemory, trace: Trace) -> list[Buffer]:
        """Follow a chain through the descriptor table.  Spec: virtio 1.3, 2.7.5."""
        trace.begun = True
        needs = Needs(memory, trace)
        buffers: list[Buffer] = []
        index = head
        for _ in range(self.layout.size):
            raw = copy_in(self.layout.desc.at(DESC_SIZE * index), DESC_SIZE)
            descriptor = Descriptor(*_DESC.unpack(raw))
            if descriptor.flags & DESC_F_INDIRECT:
                allowed = self.layout.indirect and not descriptor.flags & DESC_F_NEXT
                table = IndirectTable(descriptor, index, memory, allowed=allowed)
                try:
                    return buffers + _walk_table(table, needs)
                finally:
                    trace.see_table(table.address, table.length, outside=table.outside)
            buffers.append(descriptor.buffer)
            needs.see(descriptor.buffer)
            if not descriptor.flags & DESC_F_NEXT:
                return buffers
            index = _next(descriptor, index, self.layout.size)
        raise Broken(Reason.LOOP, head, self.layout.size)

    def push(self, done: Sequence[Done]) -> None:
        """Give chains back.  Spec: virtio 1.3, 2.7.8, 2.7.9."""
        size, used = self.layout.size, self.layout.used
        heads = [one.chain.name for one in done]
        if self.region is not None:
            self.region.prepare(heads)
        for batch in batches(done, in_order=self.layout.in_order):
            last = batch[-1]
            offset = USED_HEADER_SIZE + USED_ELEM_SIZE * (self._next_used % size)
            copy_out(used.at(offset), _USED_ELEM.pack(last.chain.name, last.written))
            self._next_used = (self._next_used + len(batch)) & _U16
        # Published last: the driver must not see the index before the elements.
        store16(used.at(_IDX), self._next_used)
        if self.region is not None:
            self.region.commit(heads, self._next_used)

    def should_call(self) -> bool:
        """Say whether the driver wants to know.  Spec: virtio 1.3, 2.7.7."""
        return not load16(self.layout.avail.at(0)) & AVAIL_F_NO_INTERRUPT

    def arm(self) -> bool:
        """Ask for kicks again; return whether entries slipped in.  Spec: virtio 1.3, 2.7.10."""
        if self._quiet:
            store16(self.layout.used.at(0), 0)
        self._quiet = False
        return self.must_replay() or load16(self.layout.avail.at(_IDX)) != self._next_avail

    def quiet(self) -> None:
        """Tell the driver that kicks are not needed now."""
        if not self._quiet:
            store16(self.layout.used.at(0), USED_F_NO_NOTIFY)
        self._quiet = True


def _next(descriptor: Descriptor, index: int, size: int) -> int:
    if descriptor.link >= size:
        raise Broken(Reason.NEXT, index, descriptor.link)
    return descriptor.link


def _walk_table(table: IndirectTable, needs: Needs) -> list[Buffer]:
    """Follow a chain through an indirect table."""
    buffers: list[Buffer] = []
    index = 0
    for _ in range(table.size):
        descriptor = Descriptor(*_DESC.unpack(table.load(index)))
        if descriptor.flags & DESC_F_INDIRECT:
            raise Broken(Reason.INDIRECT, index, descriptor.length)
        buffers.append(descriptor.buffer)
        needs.see(descriptor.buffer)
        if not descriptor.flags & DESC_F_NEXT:
            return buffers
        index = _next(descriptor, index, table.size)
    raise Broken(Reason.LOOP, table.at, table.size)
