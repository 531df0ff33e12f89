"""
The layout of the split ring in golden bytes, and the driver's arithmetic.

Spec: virtio 1.3, 2.7.5 to 2.7.10.
"""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.guest import Buffer, Descriptor, GuestMemory, Region, RingAddresses, RingError
from vhostblk.guest.layout import PAGE
from vhostblk.guest.ring import SplitRing, indirect_table, need_event
from vhostblk.guest.shape import RingShape, Used, allocate_ring

AT = RingAddresses(desc=0x1000, avail=0x2000, used=0x3000)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([Region(0, 16 * PAGE)]) as ram:
        yield ram


def use(ring: SplitRing, *elements: tuple[int, int]) -> None:
    """Do what the device does: write elements, then the index."""
    idx = ring.used_idx()
    for head, length in elements:
        at = ring.addresses.used + 4 + 8 * (idx % ring.size)
        ring.memory.write(at, head.to_bytes(4, "little") + length.to_bytes(4, "little"))
        idx = (idx + 1) & 0xFFFF
    ring.memory.store_u16(ring.addresses.used + 2, idx)


def test_sizes_of_the_parts() -> None:
    """Descriptors are 16 bytes; the event words lie behind the rings."""
    for size, expected in ((256, (4096, 518, 2054)), (1, (16, 8, 14))):
        shape = RingShape(size)
        assert (shape.desc_bytes, shape.avail_bytes, shape.used_bytes) == expected


def test_direct_chain_in_memory(memory: GuestMemory) -> None:
    """Three descriptors chained by NEXT, then the element and the index of the available ring."""
    ring = SplitRing(memory, AT, 4)
    head = ring.add([Buffer(0xAAAA, 16), Buffer(0xBBBB, 512, True), Buffer(0xCCCC, 1, True)])  # noqa: FBT003
    assert memory.read(0x2000, 4) == bytes(4), "not published yet"
    ring.publish(head)
    assert memory.read(0x1000, 64) == bytes.fromhex(
        "aaaa000000000000 10000000 0100 0100"
        "bbbb000000000000 00020000 0300 0200"
        "cccc000000000000 01000000 0200 0000"
        "0000000000000000 00000000 0000 0000"
    )
    assert memory.read(0x2000, 14) == bytes.fromhex("0000 0100 0000 0000 0000 0000 0000")
    assert (ring.free_descriptors, ring.in_flight) == (1, (head,))


def test_indirect_table_in_golden_bytes() -> None:
    """Entries are chained by their place in the table."""
    table = indirect_table([Buffer(1, 16), Buffer(2, 512), Buffer(3, 1, writable=True)])
    assert table == bytes.fromhex(
        "0100000000000000 10000000 0100 0100"
        "0200000000000000 00020000 0100 0200"
        "0300000000000000 01000000 0200 0000"
    )


def test_indirect_chain_in_memory(memory: GuestMemory) -> None:
    """A direct descriptor may lead to the one that refers to the table, which is the last."""
    ring = SplitRing(memory, AT, 4)
    ring.add_indirect([Buffer(0xAAAA, 16)], 0xBBBB, [Buffer(1, 1)] * 3)
    assert memory.read(0x1000, 32) == bytes.fromhex(
        "aaaa000000000000 10000000 0100 0100bbbb000000000000 30000000 0400 0000"
    )


def test_ring_begins_at_its_base(memory: GuestMemory) -> None:
    """A ring with a base has both indices and used_event there, and wraps past 65535."""
    ring = SplitRing(memory, AT, 2, base=65535, event_idx=True)
    assert memory.read(0x2000, 10) == bytes.fromhex("0000 ffff 0000 0000 ffff")
    assert memory.read(0x3000, 4) == bytes.fromhex("0000 ffff")
    for expected in (0, 1):
        head = ring.add([Buffer(0, 1)])
        ring.publish(head)
        assert memory.load_u16(0x2002) == expected
        use(ring, (head, 0))
        assert ring.pop_used() == [Used(head, 0)]
        assert ring.last_used == expected


@pytest.mark.parametrize("size", [0, 3, 65536, -1])
def test_size_is_a_power_of_two(memory: GuestMemory, size: int) -> None:
    """A split ring has a power of two of descriptors, 32768 at most."""
    with pytest.raises(RingError, match=f"cannot have {size} descriptors"):
        SplitRing(memory, AT, size)


def test_take_needs_free_descriptors(memory: GuestMemory) -> None:
    """A chain longer than what is free takes nothing."""
    ring = SplitRing(memory, AT, 4)
    ring.take(3)
    with pytest.raises(RingError, match="chain of 2 descriptors, but 1 of 4 are free"):
        ring.take(2)
    assert ring.free_descriptors == 1


def test_pop_used_frees_out_of_order(memory: GuestMemory) -> None:
    """Chains come back in the device's order and their descriptors are free again."""
    ring = SplitRing(memory, AT, 4)
    heads = [ring.add([Buffer(0, 1), Buffer(0, 1)]) for _ in range(2)]
    ring.publish(*heads)
    assert ring.pop_used() == []
    use(ring, (heads[1], 7), (heads[0], 9))
    assert ring.pop_used() == [Used(heads[1], 7), Used(heads[0], 9)]
    assert (ring.free_descriptors, ring.in_flight) == (4, ())


def test_pop_used_arms_used_event(memory: GuestMemory) -> None:
    """With EVENT_IDX the next call is asked for at the next entry; without, the word stays."""
    for event_idx, expected in ((True, 1), (False, 0)):
        ring = SplitRing(memory, AT, 4, event_idx=event_idx)
        head = ring.add([Buffer(0, 1)])
        ring.publish(head)
        use(ring, (head, 0))
        ring.pop_used()
        assert memory.load_u16(0x2000 + 4 + 2 * 4) == expected


def test_pop_used_refuses_what_is_not_in_flight(memory: GuestMemory) -> None:
    """A head that was never made available, or came back before, is the device's fault."""
    ring = SplitRing(memory, AT, 4)
    ring.publish(ring.add([Buffer(0, 1)]))
    use(ring, (3, 0))
    with pytest.raises(RingError, match="used head 3 at 0: not in flight"):
        ring.pop_used()


def test_pop_used_refuses_an_index_that_runs_ahead(memory: GuestMemory) -> None:
    """More used entries than chains in flight are the device's fault."""
    ring = SplitRing(memory, AT, 4)
    ring.publish(ring.add([Buffer(0, 1)]))
    memory.store_u16(0x3002, 2)
    with pytest.raises(RingError, match="2 new entries, but 1 chains are in flight"):
        ring.pop_used()


def test_pop_used_in_order_takes_a_batch(memory: GuestMemory) -> None:
    """
    One used element may stand for the chains before it; the index moves by all of them.

    Spec: virtio 1.3, 2.7.9.
    """
    ring = SplitRing(memory, AT, 8, in_order=True)
    heads = [ring.add([Buffer(0, 16), Buffer(0, 100, writable=True)]) for _ in range(3)]
    prepared = ring.add([Buffer(0, 1)])
    ring.publish(heads[1], heads[0], heads[2])
    memory.write(0x3004, heads[0].to_bytes(4, "little") + (1).to_bytes(4, "little"))
    memory.store_u16(0x3002, 2)
    assert ring.pop_used() == [Used(heads[1], 100), Used(heads[0], 1)]
    use(ring, (heads[2], 5))
    assert ring.pop_used() == [Used(heads[2], 5)]
    assert (ring.in_flight, ring.last_used) == ((prepared,), 3)


def test_pop_used_in_order_refuses_a_batch_that_is_no_batch(memory: GuestMemory) -> None:
    """A chain out of turn, with an index that moved by one only, is the device's fault."""
    ring = SplitRing(memory, AT, 4, in_order=True)
    heads = [ring.add([Buffer(0, 1)]) for _ in range(2)]
    ring.publish(*heads)
    use(ring, (heads[1], 0))
    with pytest.raises(RingError, match="number 2 in order, and moved its index by 1"):
        ring.pop_used()


def test_wants_kick_by_flag(memory: GuestMemory) -> None:
    """Without EVENT_IDX the device says in its flags whether it wants kicks."""
    ring = SplitRing(memory, AT, 4)
    assert ring.wants_kick()
    memory.store_u16(0x3000, 1)
    assert not ring.wants_kick()


def test_wants_kick_by_event(memory: GuestMemory) -> None:
    """With EVENT_IDX it names the entry it wants to hear of, behind the used ring."""
    ring = SplitRing(memory, AT, 4, event_idx=True)
    ring.publish(ring.add([Buffer(0, 1)]))
    assert ring.wants_kick()
    memory.store_u16(0x3000 + 4 + 8 * 4, 1)
    assert not ring.wants_kick()
    ring.publish(ring.add([Buffer(0, 1)]))
    assert ring.wants_kick()


def test_quiet_asks_for_no_calls(memory: GuestMemory) -> None:
    """The hint is bit 0 of the available ring's flags."""
    SplitRing(memory, AT, 4).quiet()
    assert memory.read(0x2000, 2) == b"\1\0"


def test_raw_writes_check_nothing(memory: GuestMemory) -> None:
    """Hostile tests can write any descriptor, head and index."""
    ring = SplitRing(memory, AT, 4)
    ring.write_descriptor(3, Descriptor(2**64 - 1, 2**32 - 1, 0xFFFF, 0xFFFE))
    ring.write_avail(6, 0xABCD)
    ring.set_avail_idx(0x1FFFF)
    assert memory.read(0x1030, 16) == bytes.fromhex("ffffffffffffffff ffffffff ffff feff")
    assert memory.read(0x2002, 8) == bytes.fromhex("ffff 0000 0000 cdab")


def test_allocate_ring_aligns(memory: GuestMemory) -> None:
    """The parts are aligned as the standard wants, and do not overlap."""
    memory.reserve(4096, 1)
    at = allocate_ring(memory, RingShape(8))
    assert (at.desc % 16, at.avail % 2, at.used % 4) == (0, 0, 0)
    assert at.desc + 128 <= at.avail
    assert at.avail + 22 <= at.used


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 1024))
def test_need_event_is_stepping_over(event: int, old: int, count: int) -> None:
    """The formula says whether *event* is among the entries that were added."""
    added = {(old + i) & 0xFFFF for i in range(count)}
    assert need_event(event, (old + count) & 0xFFFF, old) == (event in added)
