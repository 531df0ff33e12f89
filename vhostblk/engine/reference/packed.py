"""
The packed virtqueue.

Driver and device write into one ring of descriptors, and each goes round it.  A wrap counter says
which round: flags AVAIL and USED differ in a descriptor that is available in the round of that
counter, and are both equal to it in a used one.  Two rounds are all there are, so a position here
is a number below twice the size, the first round (wrap counter 1) first.

Everything in the ring may change while we look: as in `split`.

Source: virtio 1.3, 2.8.
"""

import errno
import struct
from collections import deque
from collections.abc import Sequence

from vhostblk.blk.request import Buffer
from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.inflight_packed import PackedRegion, Taken
from vhostblk.engine.reference.memory import GuestMemory, copy_in, copy_out, load16, store16
from vhostblk.engine.reference.needs import Needs
from vhostblk.engine.reference.record import Trace
from vhostblk.engine.reference.ring import Broken, Chain, Descriptor, Done, Layout, batches
from vhostblk.engine.reference.table import IndirectTable
from vhostblk.errors import Refused
from vhostblk.memory.space import Denied
from vhostblk.spec.virtio_ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
    PACKED_EVENT_DISABLE,
    PACKED_EVENT_ENABLE,
    PACKED_WRAP,
)

_DESC = struct.Struct("<QIHH")
_LENGTH_AND_ID = struct.Struct("<IH")
_LENGTH = 8  # offsets in a descriptor
_FLAGS = 14
_EVENT_FLAGS = 2  # offset in an event suppression structure
_EVENT_MASK = 3
_BOTH = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED


class PackedRing:
    """
    A packed virtqueue in guest memory.

    Args:
        layout: Where it lives; of any size.
        base: Next descriptor to take, and in the upper half next to use; bit 15: wrap counter.
        region: Where what is taken is noted; None: nowhere.

    Raises:
        Refused: No such place is in the ring.
    """

    def __init__(self, layout: Layout, base: int, region: PackedRegion | None) -> None:
        self.layout = layout
        self.region = region
        self._again: deque[Taken] = deque()
        self._noted: dict[int, Taken] = {}
        low, high = base & 0xFFFF, base >> 16
        self._avail = self._position(low)
        # Front-ends older than the upper half do without it; nothing is in flight then.
        self._used = self._position(high if high or not low & PACKED_WRAP else low)
        if self._room() < 0:
            raise Refused(errno.EINVAL, f"{base:#x} is no base of a ring of {layout.size}")
        self._ids: set[int] = set()
        # A back-end that died may have left its driver silenced.
        self._quiet = True

    def _position(self, half: int) -> int:
        index, wrap = half & ~PACKED_WRAP, half & PACKED_WRAP
        if index >= self.layout.size:
            raise Refused(errno.EINVAL, f"{index} is not in a ring of {self.layout.size}")
        return index if wrap else index + self.layout.size

    def _half(self, position: int) -> int:
        index = position % self.layout.size
        return index | PACKED_WRAP if index == position else index

    def _room(self) -> int:
        """Return how many descriptors can be available and not taken."""
        taken = (self._avail - self._used) % (2 * self.layout.size)
        return self.layout.size - taken

    def _descriptor(self, position: int) -> int:
        """Return where the descriptor at *position* lives."""
        return self.layout.desc.at(DESC_SIZE * (position % self.layout.size))

    def _first_round(self, position: int) -> bool:
        return position < self.layout.size

    def load(self) -> None:
        """Look into the region: what that says is newer than the base."""
        if self.region is None:
            return
        used = self._half(self._used)
        found = self.region.recover(self.layout.size, used, self._is_half_available)
        if found is None:
            return
        self._used = self._position(found[0])
        self._again.extend(found[1])
        taken = sum(len(chain.entries) for chain in self._again)
        self._avail = self._after(self._used, taken)
        self._take_back(taken)

    def _take_back(self, taken: int) -> None:
        """
        Make elements of a batch that was forgotten none.

        Those behind the first were written before it; a driver would find them when another one is
        given back in front of them.
        """
        for i in range(taken):
            position = self._after(self._used, i)
            at = self._descriptor(position) + _FLAGS
            flags = load16(at)
            if flags & _BOTH == (_BOTH if self._first_round(position) else 0):
                store16(at, flags ^ PACKED_DESC_F_USED)

    def base(self) -> int:
        """Return the next descriptor to take and the next to use, with their wrap counters."""
        return self._half(self._avail) | self._half(self._used) << 16

    def at(self) -> int:
        """Return the index of the next descriptor to take."""
        return self._avail % self.layout.size

    def places(self) -> tuple[int, int]:
        """Return the descriptors that are taken and given back next, in their rounds."""
        return self._avail, self._used

    def _is_available(self, position: int, flags: int) -> bool:
        """Say whether *flags* are those of an available descriptor.  Spec: virtio 1.3, 2.8.1."""
        expected = PACKED_DESC_F_AVAIL if self._first_round(position) else PACKED_DESC_F_USED
        return flags & _BOTH == expected

    def _is_half_available(self, half: int) -> bool:
        position = self._position(half)
        return self._is_available(position, load16(self._descriptor(position) + _FLAGS))

    def _is_next_available(self) -> bool:
        return self._is_available(self._avail, load16(self._descriptor(self._avail) + _FLAGS))

    def pop(self, memory: GuestMemory, trace: Trace) -> Chain | None:
        """
        Look at the next chain.

        Raises:
            Broken: There is one, and it is none.
            Missing: A part of it must be asked for.

        Spec: virtio 1.3, 2.8.6, 2.8.21.
        """
        if not self._again and not self._is_next_available():
            return None
        at = self._again[0].entries[0] if self._again else self.at()
        trace.begun = True
        try:
            descriptors, buffers = self._walk(memory, trace)
        except Denied as denied:
            raise Broken(Reason.OUTSIDE, at, denied.iova) from None
        name, last = descriptors[-1].link, self._index(len(descriptors) - 1)
        if name >= self.layout.size:
            raise Broken(Reason.ID, last, name)
        if name in self._ids:
            raise Broken(Reason.ID_IN_FLIGHT, last, name)
        return Chain(name, at, tuple(buffers), tuple(descriptors), again=bool(self._again))

    def take(self, chain: Chain) -> None:
        """Take the chain that was popped last."""
        self._ids.add(chain.name)
        if chain.again:
            self._noted[chain.name] = self._again.popleft()
            return
        if self.region is not None:
            self._noted[chain.name] = self.region.mark(chain.descriptors)
        self._avail = self._after(self._avail, len(chain.descriptors))

    def must_replay(self) -> bool:
        """Say whether a predecessor's chains are still to be popped."""
        return bool(self._again)

    def forget_region(self) -> None:
        """Note nothing more of what is taken."""
        self.region = None
        self._again.clear()

    def _after(self, position: int, count: int) -> int:
        return (position + count) % (2 * self.layout.size)

    def _walk(self, memory: GuestMemory, trace: Trace) -> tuple[list[Descriptor], list[Buffer]]:
        """Read a chain.  Spec: virtio 1.3, 2.8.6, 2.8.7."""
        needs = Needs(memory, trace)
        descriptors: list[Descriptor] = []
        buffers: list[Buffer] = []
        for i in range(self.layout.size):
            found = self._load_again(i) if self._again else self._load(i)
            descriptors.append(found)
            more = found.flags & DESC_F_NEXT
            if found.flags & DESC_F_INDIRECT:
                allowed = self.layout.indirect and not more and i == 0
                table = IndirectTable(found, self._index(i), memory, allowed=allowed)
                return descriptors, _read_table(table, needs, trace)
            buffers.append(found.buffer)
            needs.see(found.buffer)
            if not more:
                return descriptors, buffers
        raise Broken(Reason.LOOP, self.at(), self.layout.size)

    def _index(self, i: int) -> int:
        """Return where descriptor *i* of the next chain is met."""
        if self._again:
            return self._again[0].entries[0]
        return self._after(self._avail, i) % self.layout.size

    def _load(self, i: int) -> Descriptor:
        """Read descriptor *i* of a chain, once; its driver must have made it available."""
        position = self._after(self._avail, i)
        if i >= self._room():
            raise Broken(Reason.AVAIL_INDEX, self.at(), self._index(i))
        found = _unpack(copy_in(self._descriptor(position), DESC_SIZE))
        if i and not self._is_available(position, found.flags):
            raise Broken(Reason.PARTIAL, self._index(i), found.flags)
        return found

    def _load_again(self, i: int) -> Descriptor:
        """Return descriptor *i* of a chain that was taken before, as it was then."""
        chain = self._again[0]
        found = chain.descriptors[i]
        if bool(found.flags & DESC_F_NEXT) != (i + 1 < len(chain.entries)):
            raise Broken(Reason.INFLIGHT, chain.entries[i], found.flags)
        return found

    def push(self, done: Sequence[Done]) -> None:
        """Give chains back.  Spec: virtio 1.3, 2.8.5, 2.8.9."""
        noted = [self._noted.pop(one.chain.name) for one in done] if self.region else []
        used = self._after(self._used, sum(len(one.chain.descriptors) for one in done))
        if self.region is not None:
            self.region.prepare(noted, self._half(used))
        # The first one last: behind it the driver looks at the others, and not before.
        for host, flags in reversed(self._write_elements(done)):
            store16(host, flags)
        self._used = used
        self._ids.difference_update(one.chain.name for one in done)
        if self.region is not None:
            self.region.commit(noted, self._half(used))

    def _write_elements(self, done: Sequence[Done]) -> list[tuple[int, int]]:
        """Write used elements but for their flags; return where those are to go."""
        flags: list[tuple[int, int]] = []
        position = self._used
        for batch in batches(done, in_order=self.layout.in_order):
            last = batch[-1]
            where = self._descriptor(position)
            copy_out(where + _LENGTH, _LENGTH_AND_ID.pack(last.written, last.chain.name))
            value = _BOTH if self._first_round(position) else 0
            flags.append((where + _FLAGS, value | (DESC_F_WRITE if last.written else 0)))
            count = sum(len(one.chain.descriptors) for one in batch)
            position = self._after(position, count)
        return flags

    def should_call(self) -> bool:
        """Say whether the driver wants to know.  Spec: virtio 1.3, 2.8.10."""
        flags = load16(self.layout.avail.at(_EVENT_FLAGS)) & _EVENT_MASK
        return flags != PACKED_EVENT_DISABLE

    def arm(self) -> bool:
        """Ask for kicks again; return whether a chain slipped in."""
        if self._quiet:
            store16(self.layout.used.at(_EVENT_FLAGS), PACKED_EVENT_ENABLE)
        self._quiet = False
        return self.must_replay() or self._is_next_available()

    def quiet(self) -> None:
        """Tell the driver that kicks are not needed now."""
        if not self._quiet:
            store16(self.layout.used.at(_EVENT_FLAGS), PACKED_EVENT_DISABLE)
        self._quiet = True


def _unpack(raw: bytes) -> Descriptor:
    address, length, name, flags = _DESC.unpack(raw)
    return Descriptor(address, length, flags, name)


def _read_table(table: IndirectTable, needs: Needs, trace: Trace) -> list[Buffer]:
    """Read all of an indirect table; of its flags WRITE alone means anything."""
    buffers: list[Buffer] = []
    try:
        for index in range(table.size):
            buffers.append(_unpack(table.load(index)).buffer)
            needs.see(buffers[-1])
    finally:
        trace.see_table(table.address, table.length, outside=table.outside)
    return buffers
