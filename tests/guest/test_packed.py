"""
The packed ring in golden bytes, and the driver's arithmetic; the tests are the device.

Spec: virtio 1.3, 2.8.
"""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.guest import (
    Buffer,
    GuestMemory,
    PackedDescriptor,
    Queue,
    QueueOptions,
    Region,
    RingAddresses,
    RingError,
)
from vhostblk.guest.layout import PAGE
from vhostblk.guest.packed import PackedRing, Position, wire_base
from vhostblk.guest.shape import RingFeatures, RingShape, Used

AT = RingAddresses(desc=0x1000, avail=0x2000, used=0x3000)
HEADER, DATA, STATUS = Buffer(0xAAAA, 16), Buffer(0xBBBB, 512, True), Buffer(0xCCCC, 1, True)  # noqa: FBT003


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([Region(0, 16 * PAGE)]) as ram:
        yield ram


class Device:
    """
    The device's side, as far as the driver sees it.

    Args:
        ring: The driver's.
    """

    def __init__(self, ring: PackedRing) -> None:
        self._ring = ring
        self._at = ring.used

    def use(self, head: int, length: int, *, skip: int, write: bool = True) -> None:
        """Write one used descriptor, and go on *skip* descriptors further."""
        at = self._ring.addresses.desc + 16 * self._at.index
        flags = (0x8080 if self._at.wrap else 0) | 2 * write
        self._ring.memory.write(at + 8, length.to_bytes(4, "little") + head.to_bytes(2, "little"))
        self._ring.memory.store_u16(at + 14, flags)
        self._at = self._at.plus(skip, self._ring.size)


def publish(ring: PackedRing, *buffers: Buffer) -> int:
    head = ring.add(buffers or (STATUS,))
    ring.publish(head)
    return head


def test_sizes_of_the_parts() -> None:
    """Descriptors are 16 bytes; driver and device each say 4 bytes about events."""
    shape = RingShape(100, packed=True)
    assert (shape.desc_bytes, shape.avail_bytes, shape.used_bytes) == (1600, 4, 4)
    assert (shape.avail_align, shape.used_align) == (4, 4)


def test_a_new_ring_in_memory(memory: GuestMemory) -> None:
    """Nothing is available or used, and with EVENT_IDX the first used descriptor is asked for."""
    PackedRing(memory, AT, 3)
    assert memory.read(0x1000, 48) == bytes(48)
    assert (memory.read(0x2000, 4), memory.read(0x3000, 4)) == (bytes(4), bytes(4))
    PackedRing(memory, AT, 3, event_idx=True)
    assert memory.read(0x2000, 4) == bytes.fromhex("0080 0200")


def test_direct_chain_in_memory(memory: GuestMemory) -> None:
    """AVAIL is the wrap counter and USED is not, in each descriptor; the last one has the id."""
    ring = PackedRing(memory, AT, 4)
    head = ring.add([HEADER, DATA, STATUS])
    assert memory.read(0x1000, 64) == bytes(64), "not published yet"
    ring.publish(head)
    assert memory.read(0x1000, 64) == bytes.fromhex(
        "aaaa000000000000 10000000 ffff 8100"
        "bbbb000000000000 00020000 ffff 8300"
        "cccc000000000000 01000000 0000 8200"
        "0000000000000000 00000000 0000 0000"
    )
    assert (ring.free_descriptors, ring.in_flight) == (1, (0,))
    assert ring.avail == Position(3, wrap=True)


def test_a_chain_over_the_end_of_the_ring(memory: GuestMemory) -> None:
    """It goes on at the start, where the wrap counter is the other one."""
    ring = PackedRing(memory, AT, 3, base=wire_base(2))
    publish(ring, HEADER, STATUS)
    assert memory.read(0x1000, 48) == bytes.fromhex(
        "cccc000000000000 01000000 0000 0280"
        "0000000000000000 00000000 0000 8080"
        "aaaa000000000000 10000000 ffff 8100"
    )
    assert ring.avail == Position(1, wrap=False)


def test_the_first_flags_are_written_last(
    memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Nothing of a batch is available before all of it is there.

    Spec: virtio 1.3, 2.8.21.2.
    """
    ring = PackedRing(memory, AT, 8)
    heads = [ring.add([HEADER, STATUS]) for _ in range(2)]
    stores: list[int] = []
    monkeypatch.setattr(memory, "store_u16", lambda gpa, _value: stores.append(gpa))
    ring.publish(*heads)
    assert stores == [0x101E, 0x102E, 0x103E, 0x100E]


def test_indirect_chain_in_golden_bytes(memory: GuestMemory) -> None:
    """
    A table has no NEXT, no ids and no bits of the lap; a direct descriptor may come before it.

    Spec: virtio 1.3, 2.8.7.
    """
    ring = PackedRing(memory, AT, 4)
    assert ring.table([HEADER, DATA, STATUS]) == bytes.fromhex(
        "aaaa000000000000 10000000 0000 0000"
        "bbbb000000000000 00020000 0000 0200"
        "cccc000000000000 01000000 0000 0200"
    )
    ring.publish(ring.add_indirect([HEADER], 0xDDDD, [DATA, STATUS]))
    assert memory.read(0x1000, 32) == bytes.fromhex(
        "aaaa000000000000 10000000 ffff 8100dddd000000000000 20000000 0000 8400"
    )


@pytest.mark.parametrize("wrap", [True, False])
def test_a_ring_that_goes_on_somewhere(memory: GuestMemory, wrap: bool) -> None:  # noqa: FBT001
    """Whatever is in the ring was used, in this lap or the one before: nothing is for anybody."""
    ring = PackedRing(memory, AT, 4, base=wire_base(2, wrap=wrap))
    lap = [ring.read_descriptor(i).flags for i in range(4)]
    assert lap == ([0x8080, 0x8080, 0, 0] if wrap else [0, 0, 0x8080, 0x8080])
    assert not ring.has_used()
    for _ in range(9):
        head = publish(ring)
        Device(ring).use(head, 1, skip=1)
        assert ring.pop_used() == [Used(head, 1)]


@pytest.mark.parametrize("size", [0, 32769, -1])
def test_sizes_have_a_limit(memory: GuestMemory, size: int) -> None:
    """Any size up to 2^15, power of two or not."""
    with pytest.raises(RingError, match=f"cannot have {size} descriptors"):
        PackedRing(memory, AT, size)


@pytest.mark.parametrize("base", [wire_base(4), 0x80018000, 0])
def test_a_base_is_one_place(memory: GuestMemory, base: int) -> None:
    """A new ring begins in one place, which it has; index 0 in the lap with counter 0 is one."""
    if base == 0:
        assert PackedRing(memory, AT, 4, base=base).avail == Position(0, wrap=False)
        return
    with pytest.raises(RingError, match="cannot begin at"):
        PackedRing(memory, AT, 4, base=base)


def test_take_needs_free_descriptors(memory: GuestMemory) -> None:
    """A chain longer than what is free takes nothing."""
    ring = PackedRing(memory, AT, 4)
    publish(ring, HEADER, DATA, STATUS)
    with pytest.raises(RingError, match="chain of 2 descriptors, but 1 of 4 are free"):
        ring.add([HEADER, STATUS])
    assert ring.free_descriptors == 1


def test_pop_used_out_of_order(memory: GuestMemory) -> None:
    """
    Used descriptors lie one behind the other by the lengths of the chains they are for.

    Spec: virtio 1.3, 2.8.6.
    """
    ring = PackedRing(memory, AT, 6)
    first, second = publish(ring, HEADER, DATA, STATUS), publish(ring, HEADER, STATUS)
    device = Device(ring)
    assert ring.pop_used() == []
    device.use(second, 7, skip=2)
    device.use(first, 9, skip=3)
    assert ring.pop_used() == [Used(second, 7), Used(first, 9)]
    assert (ring.free_descriptors, ring.in_flight, ring.used) == (6, (), Position(5, wrap=True))


def test_without_write_the_length_is_reserved(memory: GuestMemory) -> None:
    """
    A used descriptor without WRITE says that nothing was written.

    Spec: virtio 1.3, 2.8.5.
    """
    ring = PackedRing(memory, AT, 4)
    head = publish(ring)
    Device(ring).use(head, 999, skip=1, write=False)
    assert ring.pop_used() == [Used(head, 0)]


def test_pop_used_in_order_takes_a_batch(memory: GuestMemory) -> None:
    """
    One used descriptor with the last id is for all before it, which were used completely.

    Spec: virtio 1.3, 2.8.9.
    """
    ring = PackedRing(memory, AT, 8, in_order=True)
    heads = [publish(ring, HEADER, DATA, STATUS), publish(ring, STATUS), publish(ring, STATUS)]
    device = Device(ring)
    device.use(heads[1], 1, skip=4)
    assert ring.pop_used() == [Used(heads[0], 513), Used(heads[1], 1)]
    device.use(heads[2], 1, skip=1)
    assert ring.pop_used() == [Used(heads[2], 1)]
    assert ring.used == Position(5, wrap=True)


def test_pop_used_refuses_what_is_not_in_flight(memory: GuestMemory) -> None:
    """An id that was never made available, or none at all, is the device's fault."""
    ring = PackedRing(memory, AT, 4)
    ring.add([STATUS])  # prepared, not published
    publish(ring)
    Device(ring).use(0, 1, skip=1)
    with pytest.raises(RingError, match="used id 0 at 0: not in flight"):
        ring.pop_used()


def test_pop_used_arms_the_next_event(memory: GuestMemory) -> None:
    """With EVENT_IDX the driver asks for a call at the next used descriptor; without, for all."""
    for event_idx, expected in ((True, "0280 0200"), (False, "0000 0000")):
        ring = PackedRing(memory, AT, 4, event_idx=event_idx)
        head = publish(ring, HEADER, STATUS)
        Device(ring).use(head, 1, skip=2)
        ring.pop_used()
        assert memory.read(0x2000, 4) == bytes.fromhex(expected)


def test_quiet_asks_for_no_calls(memory: GuestMemory) -> None:
    """Flags 1 disable calls."""
    PackedRing(memory, AT, 4).quiet()
    assert memory.read(0x2000, 4) == bytes.fromhex("0000 0100")


@pytest.mark.parametrize(
    ("flags", "event_idx", "expected"),
    [(0, True, True), (1, True, False), (1, False, False), (2, False, True), (3, True, True)],
)
def test_wants_kick_by_flag(
    memory: GuestMemory,
    flags: int,
    event_idx: bool,  # noqa: FBT001
    expected: bool,  # noqa: FBT001
) -> None:
    """The device enables or disables kicks; what it must not say counts as enabled."""
    ring = PackedRing(memory, AT, 4, event_idx=event_idx)
    memory.store_u16(0x3002, flags)
    publish(ring)
    assert ring.wants_kick() is expected


@settings(deadline=None)  # each example makes guest memory
@given(st.data())
def test_wants_kick_when_stepping_over(data: st.DataObject) -> None:
    """With EVENT_IDX the device names a descriptor and its lap, and is kicked for that one."""
    size = data.draw(st.integers(1, 12))
    start = data.draw(st.integers(0, size - 1))
    wrap = data.draw(st.booleans())
    added = data.draw(st.integers(1, size))
    with GuestMemory([Region(0, 16 * PAGE)]) as memory:
        ring = PackedRing(memory, AT, size, base=wire_base(start, wrap=wrap), event_idx=True)
        named = data.draw(st.integers(-size, 2 * size - 1))
        event = Position(start, wrap).plus(named, size)
        memory.write(0x3000, event.half.to_bytes(2, "little") + b"\2\0")
        ring.publish(ring.add([STATUS] * added))
        # What lies two laps away has the same name as what lies in this one.
        assert ring.wants_kick() == (named % (2 * size) < added)


@settings(deadline=None)  # each example makes guest memory
@given(st.integers(1, 9), st.data())
def test_any_order_on_a_ring_of_any_size(size: int, data: st.DataObject) -> None:
    """Chains of any length come back in any order, lap after lap, and nothing is lost."""
    with GuestMemory([Region(0, 16 * PAGE)]) as memory:
        ring = PackedRing(memory, AT, size, event_idx=data.draw(st.booleans()))
        device = Device(ring)
        flying: dict[int, int] = {}
        for _ in range(12):
            while ring.free_descriptors and data.draw(st.booleans()):
                count = data.draw(st.integers(1, ring.free_descriptors))
                flying[publish(ring, *[STATUS] * count)] = count
            done = data.draw(st.permutations(sorted(flying)))
            done = done[: data.draw(st.integers(0, len(done)))]
            for head in done:
                device.use(head, head + 1, skip=flying.pop(head))
            assert ring.pop_used() == [Used(head, head + 1) for head in done]
            assert set(ring.in_flight) == set(flying)
        assert ring.free_descriptors == size - sum(flying.values())


def test_raw_writes_check_nothing(memory: GuestMemory) -> None:
    """Hostile tests can write any descriptor, with flags that lie about whose it is."""
    ring = PackedRing(memory, AT, 4)
    ring.write([PackedDescriptor(2**64 - 1, 2**32 - 1, 0xABCD, 0x7F), STATUS_RAW], lie=0x8080)
    assert memory.read(0x1000, 32) == bytes.fromhex(
        "ffffffffffffffff ffffffff cdab 7f80cccc000000000000 01000000 0500 8200"
    )
    assert ring.avail == Position(2, wrap=True)


STATUS_RAW = PackedDescriptor(0xCCCC, 1, 5, 2)


def test_a_queue_has_the_format_that_was_negotiated(memory: GuestMemory) -> None:
    """A queue with RING_PACKED begins at counter 1, kicks and reaps like any other."""
    queue = Queue.create(0, memory, QueueOptions(size=5), features=RingFeatures(packed=True))
    assert queue.base == 0x80008000
    ticket = queue.submit([HEADER, DATA, STATUS], indirect=True)
    assert queue.counters.kicks == 1
    Device(queue.packed).use(ticket.head, 513, skip=1)
    queue.wait([ticket], timeout=5)
    assert ticket.used_length == 513
    with pytest.raises(Exception, match="queue 0 has the packed format"):
        _ = queue.split
    queue.replace_ring(QueueOptions(size=4))
    assert queue.base == 0
    with pytest.raises(Exception, match="queue 0 has the split format"):
        _ = queue.packed
    queue.close()
