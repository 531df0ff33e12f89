"""
Drivers of packed rings that break the rules; see `hostile` for what a case is.

Spec: virtio 1.3, 2.8.
"""

from collections.abc import Callable

from vhostblk.guest.hostile import Case, Outcome, Trap, data, header, status
from vhostblk.guest.packed import NO_ID, PackedDescriptor
from vhostblk.guest.queue import Queue
from vhostblk.guest.shape import Buffer
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.virtio_blk import SECTOR_SIZE

LAP = vr.PACKED_DESC_F_AVAIL | vr.PACKED_DESC_F_USED


def descriptor(buffer: Buffer, *, more: bool = False, id_: int = NO_ID) -> PackedDescriptor:
    """Describe *buffer*; *more*: with NEXT."""
    flags = (vr.DESC_F_WRITE if buffer.writable else 0) | (vr.DESC_F_NEXT if more else 0)
    return PackedDescriptor(buffer.gpa, buffer.length, id_, flags)


def read_chain(queue: Queue, id_: int) -> list[PackedDescriptor]:
    """Return the descriptors of an honest read of one sector."""
    first, middle, last = header(queue), data(queue), status(queue)
    return [
        descriptor(first, more=True),
        descriptor(middle, more=True),
        descriptor(last, id_=id_),
    ]


def raw(queue: Queue, *descriptors: PackedDescriptor, lie: int = 0) -> Trap:
    """Make descriptors available as they are and kick; nothing of them should come back."""
    queue.packed.write(descriptors, lie=lie)
    queue.notify()
    return Trap()


def _id(id_: int) -> Callable[[Queue], Trap]:
    def set_up(queue: Queue) -> Trap:
        return raw(queue, *read_chain(queue, queue.packed.size if id_ < 0 else id_))

    return set_up


def _one_id_twice(queue: Queue) -> Trap:
    """Wrong only while the first is in flight: not with a disk that is done with it at once."""
    return raw(queue, *read_chain(queue, 0), *read_chain(queue, 0))


def _without_end(queue: Queue) -> Trap:
    first = header(queue)
    return raw(queue, *[descriptor(first, more=True, id_=0)] * queue.packed.size)


def _end_is_missing(queue: Queue) -> Trap:
    return raw(queue, *read_chain(queue, 0)[:2])


def _later_flags(flags: int) -> Callable[[Queue], Trap]:
    """Turn *flags* over in the second descriptor of a chain."""

    def set_up(queue: Queue) -> Trap:
        ring, second = queue.packed, queue.packed.avail.plus(1, queue.packed.size)
        at = ring.addresses.desc + vr.DESC_SIZE * second.index
        # The ring writes the first one's flags last, so both are wrong before the device looks.
        ring.write(read_chain(queue, 0), lie=LAP)
        ring.memory.store_u16(at + 14, ring.memory.load_u16(at + 14) ^ flags)
        first = at - vr.DESC_SIZE
        ring.memory.store_u16(first + 14, ring.memory.load_u16(first + 14) ^ LAP)
        queue.notify()
        return Trap()

    return set_up


def _table(length: int, flags: int = 0, *, behind: bool = False) -> Callable[[Queue], Trap]:
    def set_up(queue: Queue) -> Trap:
        contents = queue.ring.table([header(queue), data(queue), status(queue)])
        gpa = queue.memory.allocate(len(contents))
        queue.memory.write(gpa, contents)
        table = PackedDescriptor(gpa, length, 0, vr.DESC_F_INDIRECT | flags)
        before = [descriptor(header(queue), more=True)] if behind else []
        return raw(queue, *before, table)

    return set_up


def _table_outside(queue: Queue) -> Trap:
    gpa = queue.memory.hole()
    return raw(queue, PackedDescriptor(gpa, 3 * vr.DESC_SIZE, 0, vr.DESC_F_INDIRECT))


def _status_outside(queue: Queue) -> Trap:
    outside = Buffer(queue.memory.hole(), 1, writable=True)
    buffers = [header(queue), Buffer(data(queue).gpa, SECTOR_SIZE, writable=True)]
    return raw(queue, *(descriptor(b, more=True) for b in buffers), descriptor(outside, id_=0))


PACKED_CASES = (
    Case("id is the ring's size", Outcome.BROKEN, _id(-1)),
    Case("id is 65535", Outcome.BROKEN, _id(0xFFFF)),
    Case("two chains with one id", Outcome.BROKEN, _one_id_twice),
    Case("chain as long as the ring, and on", Outcome.BROKEN, _without_end),
    Case("chain whose end is not available", Outcome.BROKEN, _end_is_missing),
    Case("descriptor of the lap before in a chain", Outcome.BROKEN, _later_flags(LAP)),
    Case("used descriptor in a chain", Outcome.BROKEN, _later_flags(vr.PACKED_DESC_F_USED)),
    Case("status outside RAM", Outcome.BROKEN, _status_outside),
    Case("INDIRECT and NEXT together", Outcome.BROKEN, _table(48, vr.DESC_F_NEXT)),
    Case("indirect table behind a descriptor", Outcome.BROKEN, _table(48, behind=True)),
    Case("indirect table of 0 bytes", Outcome.BROKEN, _table(0)),
    Case("indirect table of 47 bytes", Outcome.BROKEN, _table(47)),
    Case("indirect table outside RAM", Outcome.BROKEN, _table_outside),
)
"""The ring is not a ring, or a chain cannot be followed to its end; INDIRECT_DESC negotiated."""
