import os

import pytest

from vhostblk.guest import GuestMemory, Region
from vhostblk.guest.dma import BounceError
from vhostblk.guest.firmware import Islands
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.layout import MIB, PAGE
from vhostblk.guest.pages import Mode
from vhostblk.guest.shape import RingShape


@pytest.mark.parametrize("mode", ["plain", "sev", "snp", "tdx"])
def test_each_mapping_is_an_island(mode: Mode) -> None:
    """A mapping has pages of its own, shared while it lasts, and what was written comes back."""
    with GuestMemory([Region(0, MIB)], mode=mode) as memory:
        dma = Islands(memory)
        orig = memory.allocate(5000)
        memory.write(orig, b"a" * 5000)
        first, second = (dma.map(orig, size, writable=True) for size in (16, 5000))
        assert first % PAGE == second % PAGE == 0
        os.pwrite(memory.mappings[0].fd, b"bb", second)
        if mode != "plain":
            assert memory.shared_pages == {first, second, second + PAGE}
        dma.unmap(first, 0)
        dma.unmap(second, 2)
        assert memory.shared_pages == frozenset()
        assert memory.read(orig, 4) == b"bbaa"
        assert memory.read(second, PAGE) == bytes(PAGE), "cleared before it is freed"
        assert dma.exposed == {first, second, second + PAGE}


def test_islands_leave_holes() -> None:
    """On SEV-SNP nothing is left of a request but the ring."""
    with GuestMemory([Region(0, MIB)], mode="snp") as memory:
        dma = Islands(memory)
        ring = dma.allocate_ring(RingShape(4))
        orig = memory.allocate(16)
        address = dma.map(orig, 16, writable=False)
        assert touched_pages(memory) == {ring.desc, address}
        dma.unmap(address, 0)
        assert touched_pages(memory) == {ring.desc}
        dma.free_ring(ring)
        assert touched_pages(memory) == frozenset()


def test_writing_behind_the_buffer_is_noticed() -> None:
    """The rest of an island's page is the driver's; the island is taken back all the same."""
    with GuestMemory([Region(0, MIB)], mode="snp") as memory:
        dma = Islands(memory)
        address = dma.map(memory.allocate(16), 16, writable=True)
        os.pwrite(memory.mappings[0].fd, b"x", address + 4000)
        with pytest.raises(BounceError, match="outside"):
            dma.unmap(address, 16)
        assert memory.shared_pages == frozenset()
