"""The tests are the device: they write through the memfd."""

import os
from collections.abc import Iterator

import pytest

from vhostblk.guest import GuestError, GuestMemory, Region
from vhostblk.guest.bounce import Bounced, SwiotlbOptions
from vhostblk.guest.dma import CANARY, BounceError
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.layout import MIB, PAGE
from vhostblk.guest.pages import Mode, Protection
from vhostblk.guest.shape import RingShape
from vhostblk.guest.swiotlb import SLOT, PoolFullError


@pytest.fixture(params=["plain", "sev", "snp", "tdx"])
def memory(request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    mode: Mode = request.param
    with GuestMemory([Region(0, 4 * MIB)], mode=mode) as ram:
        yield ram


def small(**options: int | bool) -> SwiotlbOptions:
    return SwiotlbOptions(nslabs=128, **options)  # type: ignore[arg-type]


def device_read(memory: GuestMemory, gpa: int, length: int) -> bytes:
    return os.pread(memory.mappings[0].fd, length, gpa)


def device_write(memory: GuestMemory, gpa: int, data: bytes) -> None:
    os.pwrite(memory.mappings[0].fd, data, gpa)


def buffer(memory: GuestMemory, data: bytes) -> int:
    gpa = memory.allocate(len(data))
    memory.write(gpa, data)
    return gpa


def test_device_reads_a_copy(memory: GuestMemory) -> None:
    """The device finds the bytes in the pool, at the start of a slot, and is done with that."""
    dma = Bounced(memory, small())
    orig = buffer(memory, b"header, sixteen ")
    address = dma.map(orig, 16, writable=False)
    assert address != orig
    assert address % SLOT == 0
    assert device_read(memory, address, 16) == b"header, sixteen "
    assert dma.used == 1
    dma.unmap(address, 0)
    assert dma.used == 0
    assert memory.read(orig, 16) == b"header, sixteen "


def test_device_writes_come_back(memory: GuestMemory) -> None:
    """What the device wrote is in the buffer after the unmap; the rest is what it was."""
    dma = Bounced(memory, small())
    orig = buffer(memory, b"old" * 2000)
    address = dma.map(orig, 6000, writable=True)
    assert address % PAGE == 0
    assert device_read(memory, address, 6000) == b"old" * 2000, "copied in this direction too"
    device_write(memory, address, b"new" * 100)
    dma.unmap(address, 300)
    assert memory.read(orig, 6000) == b"new" * 100 + b"old" * 1900


def test_writing_a_read_only_buffer_is_noticed(memory: GuestMemory) -> None:
    """The device may not write what it may only read; the slots are free all the same."""
    dma = Bounced(memory, small())
    orig = buffer(memory, bytes(512))
    address = dma.map(orig, 512, writable=False)
    device_write(memory, address + 511, b"x")
    with pytest.raises(BounceError, match=f"wrote into the read-only buffer .* {address:#x}"):
        dma.unmap(address, 0)
    assert dma.used == 0
    assert memory.read(orig, 512) == bytes(512)


def test_writing_behind_a_buffer_is_noticed(memory: GuestMemory) -> None:
    """A canary fills the rest of the last slot."""
    dma = Bounced(memory, small())
    address = dma.map(buffer(memory, bytes(512)), 512, writable=True)
    device_write(memory, address + 512, b"\0")
    with pytest.raises(BounceError, match="wrote outside the writable buffer of 512 bytes"):
        dma.unmap(address, 512)


def test_writing_more_than_claimed_is_noticed(memory: GuestMemory) -> None:
    """
    Bytes beyond the used length are unchanged, but for those that need no claim.

    Spec: virtio 1.3, 2.7.8.2.
    """
    dma = Bounced(memory, small())
    address = dma.map(buffer(memory, bytes(512)), 512, writable=True)
    device_write(memory, address, b"x" * 100)
    device_write(memory, address + 511, b"s")
    with pytest.raises(BounceError, match="wrote more than the 99 bytes"):
        dma.unmap(address, 99, spare=1)
    address = dma.map(buffer(memory, bytes(512)), 512, writable=True)
    device_write(memory, address, b"x" * 100)
    device_write(memory, address + 511, b"s")
    dma.unmap(address, 100, spare=1)


@pytest.mark.parametrize("used", [False, True])
def test_writing_into_free_slots_is_noticed(memory: GuestMemory, *, used: bool) -> None:
    """A slot that was written while it was free is found when it is handed out."""
    dma = Bounced(memory, small())
    orig = buffer(memory, bytes(128 * SLOT))
    if used:
        dma.unmap(dma.map(orig, 128 * SLOT, writable=True), 0)
    at = dma.pools[0].start + 5 * SLOT + 7
    assert device_read(memory, at, 1) == (bytes([CANARY]) if used else b"\0")
    device_write(memory, at, b"x")
    with pytest.raises(BounceError, match=f"free bounce slot at GPA {at - 7:#x}"):
        dma.map(orig, 128 * SLOT, writable=False)


def test_dropped_slots_are_not_looked_at(memory: GuestMemory) -> None:
    """After a drop the device may still write; the next mapping there does not mind."""
    dma = Bounced(memory, small())
    orig = buffer(memory, bytes(128 * SLOT))
    address = dma.map(orig, 128 * SLOT, writable=True)
    dma.drop(address)
    device_write(memory, address, b"late")
    assert dma.map(orig, 128 * SLOT, writable=True) == address


def test_a_full_pool_says_so(memory: GuestMemory) -> None:
    """No room is an error of its own that leaves everything as it was."""
    dma = Bounced(memory, small())
    orig = buffer(memory, bytes(65 * SLOT))
    first = dma.map(orig, 65 * SLOT, writable=True)
    with pytest.raises(PoolFullError, match=r"133120 bytes asked for, 128 slots, 65 of them used"):
        dma.map(orig, 65 * SLOT, writable=True)
    dma.unmap(first, 0)
    assert dma.high_water == 65
    dma.map(orig, 65 * SLOT, writable=True)


def test_too_long_for_a_set(memory: GuestMemory) -> None:
    """A mapping longer than 256 KiB is refused, whatever is free."""
    dma = Bounced(memory, SwiotlbOptions(nslabs=256))
    orig = memory.allocate(MIB)
    assert dma.max_mapping == 262144
    dma.unmap(dma.map(orig, 262144, writable=True), 0)
    with pytest.raises(GuestError, match="longer than a set"):
        dma.map(orig, 262145, writable=True)


def test_dynamic_pools_grow(memory: GuestMemory) -> None:
    """A full pool gets a transient one for one mapping, then a lasting one."""
    dma = Bounced(memory, small(dynamic=True, grow=256))
    orig = buffer(memory, bytes(100 * SLOT))
    dma.map(orig, 100 * SLOT, writable=True)
    transient = dma.map(orig, 99 * SLOT, writable=True)
    assert [len(span) // SLOT for span in dma.pools] == [128, 100], "99 slots are 50 pages"
    assert memory.is_shared(transient)
    third = dma.map(orig, 100 * SLOT, writable=True)
    assert [len(span) // SLOT for span in dma.pools] == [128, 100, 256]
    dma.unmap(transient, 0)
    assert [len(span) // SLOT for span in dma.pools] == [128, 256]
    assert third in dma.pools[1]
    assert memory.is_shared(transient) == (memory.protection.mode == "plain")


def test_min_align_mask_keeps_offsets(memory: GuestMemory) -> None:
    """With a mask the copy has the buffer's offset, and canaries in front of it."""
    dma = Bounced(memory, small(min_align_mask=4095))
    base = memory.allocate(2 * PAGE, align=PAGE)
    address = dma.map(base + 0x234, 100, writable=True)
    assert address % PAGE == 0x234
    device_write(memory, address - 1, b"x")
    with pytest.raises(BounceError, match="outside"):
        dma.unmap(address, 100)


def test_ring_is_one_shared_piece(memory: GuestMemory) -> None:
    """
    Rings lie in pages of their own: descriptors, available ring, used ring at a multiple of 64.

    Source: Linux's driver on PCI.
    """
    dma = Bounced(memory, small())
    ring = dma.allocate_ring(RingShape(256))
    assert ring.desc % PAGE == 0
    assert ring.avail == ring.desc + 4096
    assert ring.used == ring.desc + 4096 + 576
    assert device_read(memory, ring.desc, 8192) == bytes(8192)
    assert ring.desc not in dma.pools[0]
    assert memory.is_shared(ring.used + 2054)
    assert set(range(ring.desc, ring.desc + 2 * PAGE, PAGE)) == dma.exposed
    dma.free_ring(ring)
    assert memory.is_shared(ring.desc) == (memory.protection.mode == "plain")


@pytest.mark.parametrize("mode", ["snp", "tdx"])
def test_the_pool_is_not_touched_before_it_is_used(mode: Mode) -> None:
    """Pages that no mapping named are holes, so that a stray access within the pool shows."""
    with GuestMemory([Region(0, 4 * MIB)], mode=mode) as memory:
        dma = Bounced(memory, small())
        assert touched_pages(memory) == frozenset()
        address = dma.map(buffer(memory, b"x" * 5000), 5000, writable=False)
        assert touched_pages(memory) == {address, address + PAGE} == dma.exposed


def test_close_gives_everything_back(memory: GuestMemory) -> None:
    """After close the memory can be had again, private."""
    dma = Bounced(memory, small())
    start = dma.pools[0].start
    dma.close()
    assert memory.reserve(start, 128 * SLOT) == start
    assert memory.shared_pages == frozenset()


def test_a_mapping_is_synced(memory: GuestMemory) -> None:
    """Either side sees the other's bytes when it is told, not before, and the mapping lasts."""
    dma = Bounced(memory, small())
    out, into = buffer(memory, b"first"), buffer(memory, b".....")
    shown, written = dma.map(out, 5, writable=False), dma.map(into, 5, writable=True)
    memory.write(out, b"again")
    assert device_read(memory, shown, 5) == b"first"
    dma.sync_for_device(shown)
    assert device_read(memory, shown, 5) == b"again"
    device_write(memory, written, b"heard")
    assert memory.read(into, 5) == b"....."
    dma.sync_for_cpu(written)
    dma.sync_for_cpu(shown)
    assert memory.read(into, 5) == b"heard"
    dma.unmap(shown, 0)
    dma.unmap(written, 5)
    assert dma.used == 0


def test_a_sync_forgives_nothing(memory: GuestMemory) -> None:
    """What the device did to a buffer it may only read shows at the end all the same."""
    dma = Bounced(memory, small())
    shown = dma.map(buffer(memory, b"first"), 5, writable=False)
    dma.sync_for_device(shown)
    device_write(memory, shown, b"!")
    dma.sync_for_cpu(shown)
    with pytest.raises(BounceError, match="wrote into the read-only buffer"):
        dma.unmap(shown, 0)


def test_free_pages_are_recycled(memory: GuestMemory) -> None:
    """What holds no mapping becomes private and shared again, what holds one stays as it is."""
    dma = Bounced(memory, small())
    orig = buffer(memory, b"x" * 6000)
    gone, kept = (dma.map(orig, 6000, writable=False) for _ in range(2))
    dma.unmap(gone, 0)
    holes = touched_pages(memory)
    assert dma.recycle() == 128 * SLOT // PAGE - 2
    assert device_read(memory, kept, 6000) == b"x" * 6000
    if memory.protection.mode in {"snp", "tdx"}:
        assert holes - touched_pages(memory) == {gone, gone + PAGE}
    dma.unmap(dma.map(orig, 6000, writable=False), 0)
    device_write(memory, dma.pools[0][-1], b"!")
    with pytest.raises(BounceError, match="free bounce slot"):
        _ = [dma.map(orig, 16, writable=False) for _ in range(128)]


@pytest.mark.parametrize("mode", ["snp", "tdx"])
def test_pages_that_leave_their_bytes_behind(mode: Mode) -> None:
    """As with huge pages: a new pool on pages that were shared before is clear all the same."""
    with GuestMemory([Region(0, 4 * MIB)], mode=Protection(mode=mode, punch=False)) as memory:
        dma = Bounced(memory, small())
        start = dma.pools[0].start
        orig = buffer(memory, b"secret" * 100)
        dma.unmap(dma.map(orig, 600, writable=False), 0)
        left = dma.map(orig, 600, writable=False)
        dma.close()
        assert device_read(memory, left, 600) == b"secret" * 100, "the host has it still"
        again = Bounced(memory, small())
        assert again.pools[0].start == start
        for _ in range(128):
            again.map(orig, 16, writable=False)
