import errno
import os

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.iommu import PAGE, PLATFORM, RING, iommu
from server_kit.wire import LINUX, START, UVA, addresses, wired

from vhostblk.spec.virtio_ring import F_IN_ORDER, F_RING_PACKED

PACKED = LINUX | F_RING_PACKED
FRESH = 0x80008000
"""The base of a ring nothing has happened to; virtio 1.3, 2.8.1."""


@pytest.mark.parametrize("num", [8, 1, 13, 1024])
def test_a_packed_ring_of_any_size_starts(num: int) -> None:
    """
    Its parts are the descriptors and two event suppressions, whatever their number.

    Spec: virtio 1.3, 2.8.10.
    """

    async def start() -> None:
        async with wired() as wire:
            await wire.negotiate(PACKED)
            await wire.plug()
            wire.tell(8, vring(0, num))
            wire.tell(10, vring(0, FRESH))
            wire.tell(9, addresses(0, UVA + 0x10000))
            assert await wire.acked(12, u64(0), [os.eventfd(0)]) == 0
            wire.queue.calls.clear()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert wire.queue.calls[1] == ("ring", num, num * 16, 4, 4)
            assert wire.queue.calls[2] == ("base", FRESH)
            assert wire.queue.names() == START

    uvloop.run(start())


def test_the_format_is_that_of_the_start() -> None:
    """
    Numbers may come before SET_FEATURES, and the next driver may want the other format.

    Spec: vhost-user, "VHOST_USER_SET_VRING_NUM"; virtio 1.3, 2.4.
    """

    async def both() -> None:
        async with wired() as wire:
            await wire.negotiate()
            await wire.plug()
            await wire.set_up(num=8)
            assert await wire.acked(2, u64(PACKED)) == 0
            wire.tell(10, vring(0, FRESH))
            assert await wire.acked(18, vring(0, 1)) == 0
            assert ("ring", 8, 128, 4, 4) in wire.queue.calls
            wire.tell(34)
            wire.tell(2, u64(LINUX))
            await wire.set_up(num=8)
            wire.queue.calls.clear()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert ("ring", 8, 128, 22, 70) in wire.queue.calls

    uvloop.run(both())


def test_a_packed_base_has_32_bits_both_ways() -> None:
    """GET_VRING_BASE gives both indexes and wrap counters, and SET_VRING_BASE takes them again."""

    async def stop() -> None:
        async with wired() as wire:
            await wire.negotiate(PACKED)
            await wire.plug()
            await wire.set_up(base=0x80078003)
            assert await wire.acked(18, vring(0, 1)) == 0
            wire.queue.next = 0x00060005
            assert await wire.ask(11, vring(0, 0)) == vring(0, 0x00060005)
            assert await wire.ask(11, vring(0, 0)) == vring(0, 0x00060005)

    uvloop.run(stop())


@pytest.mark.parametrize("base", [0x80008008, 0x80088000, 0x7FFF0000])
def test_a_packed_base_outside_the_ring_is_refused(base: int) -> None:
    """An index of either half at or beyond the size starts nothing; a good one does."""

    async def refuse() -> None:
        async with wired() as wire:
            await wire.negotiate(PACKED)
            await wire.plug()
            await wire.set_up(num=8, base=base)
            assert await wire.acked(18, vring(0, 1)) == errno.EINVAL
            wire.tell(10, vring(0, FRESH))
            assert await wire.acked(18, vring(0, 1)) == 0

    uvloop.run(refuse())


def test_a_ring_nobody_gave_a_base_begins_as_a_new_one() -> None:
    """Without SET_VRING_BASE a packed ring's wrap counters are 1, a split ring is at 0."""

    async def begin() -> None:
        async with wired() as wire:
            for features, base in ((PACKED, FRESH), (LINUX, 0)):
                await wire.negotiate(features)
                await wire.plug()
                wire.tell(8, vring(0, 8))
                wire.tell(9, addresses(0))
                assert await wire.acked(12, u64(0), [os.eventfd(0)]) == 0
                assert await wire.acked(18, vring(0, 1)) == 0
                assert wire.queue.next == base
                wire.tell(34)

    uvloop.run(begin())


def test_packed_can_be_turned_off() -> None:
    """With packed off bit 34 is not offered, and acking it is refused; all else is as before."""

    async def off() -> None:
        async with wired() as wire:
            on = int.from_bytes(await wire.ask(1), "little")
        async with wired(packed=False) as wire:
            assert int.from_bytes(await wire.ask(1), "little") == on & ~F_RING_PACKED
            wire.tell(16, u64(1 << 3))
            assert await wire.acked(2, u64(PACKED)) == errno.EINVAL
        assert on & F_RING_PACKED
        assert on & F_IN_ORDER

    uvloop.run(off())


def test_a_packed_ring_behind_an_iommu_asks_for_its_parts() -> None:
    """
    The descriptors are read and written there, and the events each in one direction.

    Spec: vhost-user, "IOMMU support"; virtio 1.3, 2.8.
    """

    async def ask() -> None:
        async with iommu() as wire:
            await wire.begin(features=PACKED | PLATFORM, base=FRESH)
            assert await wire.missed() == (RING, 3)
            await wire.update(RING)
            wire.answer()
            assert await wire.missed() == (RING + PAGE, 1)
            await wire.update(RING + PAGE, UVA + PAGE)
            wire.answer()
            assert await wire.missed() == (RING + 2 * PAGE, 2)
            await wire.update(RING + 2 * PAGE, UVA + 2 * PAGE)
            wire.answer()
            await wire.until(lambda: wire.queue.running)
            assert ("ring", 8, 128, 4, 4) in wire.queue.calls
            assert ("base", FRESH) in wire.queue.calls
            wire.queue.next = 0x80018001
            assert await wire.ask(11, vring(0, 0)) == vring(0, 0x80018001)

    uvloop.run(ask())
