import pytest

from vhostblk.guest import GuestMemory, Region
from vhostblk.guest.bounce import Bounced, SwiotlbOptions
from vhostblk.guest.dma import Direct, Marked, pages_of, share_pages, unshare_pages
from vhostblk.guest.layout import MIB, PAGE
from vhostblk.guest.shape import RingShape


def test_direct_shows_memory_as_it_is() -> None:
    """Without bouncing the device is given the buffer itself, and rings wherever there is room."""
    with GuestMemory([Region(0, MIB)]) as memory:
        dma = Direct(memory)
        assert dma.max_mapping is None
        assert dma.map(0x1234, 99, writable=True) == 0x1234
        dma.unmap(0x1234, 99)
        dma.drop(0x1234)
        ring = dma.allocate_ring(RingShape(8))
        assert memory.is_ram(ring.used, 70)
        dma.free_ring(ring)
        dma.close()
        assert memory.allocate(MIB - PAGE) == PAGE


def test_marked_addresses_have_the_bit() -> None:
    """The bit is in what the device is told, and nowhere else."""
    with GuestMemory([Region(0, MIB)], mode="sev") as memory:
        dma = Marked(Bounced(memory, SwiotlbOptions(nslabs=128)), 51)
        orig = memory.allocate(16)
        memory.write(orig, b"sixteen bytes...")
        address = dma.map(orig, 16, writable=False)
        assert address >> 51 == 1
        assert memory.read(address & ~(1 << 51), 16) == b"sixteen bytes..."
        assert not memory.is_ram(address)
        dma.unmap(address, 0)
        dma.drop(dma.map(orig, 16, writable=False))
        assert dma.max_mapping == 262144
        ring = dma.allocate_ring(RingShape(8))
        assert memory.is_shared(ring.desc)
        dma.free_ring(ring)
        dma.close()
        assert memory.shared_pages == frozenset()


@pytest.mark.parametrize(
    ("address", "length", "pages"), [(0, 1, [0]), (PAGE - 1, 2, [0, PAGE]), (PAGE, PAGE, [PAGE])]
)
def test_pages_of_a_range(address: int, length: int, pages: list[int]) -> None:
    """Every page the range touches, and no other."""
    assert list(pages_of(address, length)) == pages


def test_shared_pages_come_and_go() -> None:
    """Pages are shared while they are handed out."""
    with GuestMemory([Region(0, MIB)], mode="tdx") as memory:
        gpa = share_pages(memory, 3 * PAGE)
        assert memory.shared_pages == {gpa, gpa + PAGE, gpa + 2 * PAGE}
        unshare_pages(memory, gpa, 3 * PAGE)
        assert memory.shared_pages == frozenset()
        assert memory.reserve(gpa, 3 * PAGE) == gpa
