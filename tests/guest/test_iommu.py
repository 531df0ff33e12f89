"""The page table of the fake guest's IOMMU."""

from collections.abc import Iterator

import pytest

from vhostblk.guest.dma import Direct
from vhostblk.guest.errors import GuestError
from vhostblk.guest.iommu import TOP, Iommu, Mapped, Remapped
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.wire import Iotlb

PAGE = 4096


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Return 64 MiB of RAM."""
    with GuestMemory() as made:
        yield made


def test_iovas_go_down_from_the_top(memory: GuestMemory) -> None:
    """Whole pages; the offset in the page stays, as a driver's does."""
    iommu = Iommu(memory)
    assert iommu.map(0x10010, 16, 1) == TOP - PAGE + 0x10
    assert iommu.map(0x20FFF, 2, 2) == TOP - 3 * PAGE + 0xFFF
    assert iommu.find(TOP - 2 * PAGE) == Mapped(TOP - 3 * PAGE, 0x20000, 2 * PAGE, 2)
    assert iommu.gpa(TOP - PAGE + 0x10) == 0x10010


def test_iova_is_used_again_at_once(memory: GuestMemory) -> None:
    """A device that remembers too long finds another page there."""
    iommu = Iommu(memory)
    first = iommu.map(0x10000, PAGE, 1)
    iommu.map(0x20000, PAGE, 1)
    iommu.unmap(first)
    assert iommu.find(first) is None
    assert iommu.map(0x30000, PAGE, 1) == first
    with pytest.raises(GuestError, match="not mapped"):
        iommu.gpa(first - 2 * PAGE)


def test_driver_gives_no_more_rights_than_needed(memory: GuestMemory) -> None:
    """What the device reads it cannot write, and the other way round; dropped, all is gone."""
    iommu = Iommu(memory)
    dma = Remapped(Direct(memory), iommu)
    out, into = (dma.map(0x10000, 8, writable=writable) for writable in (False, True))
    rights = [one.perm for one in (iommu.find(out), iommu.find(into)) if one]
    assert rights == [1, 2]
    dma.unmap(out, 0)
    dma.drop(into)
    assert iommu.find(out) is iommu.find(into) is None


def test_message_is_32_bytes() -> None:
    """Golden bytes; another size is an error."""
    one = Iotlb(0x1000, 0x2000, 0x3000, 3, 2)
    raw = (0x1000).to_bytes(8, "little") + (0x2000).to_bytes(8, "little")
    assert one.pack() == raw + (0x3000).to_bytes(8, "little") + b"\x03\x02" + bytes(6)
    assert Iotlb.parse(one.pack()) == one
    with pytest.raises(GuestError, match="26 bytes"):
        Iotlb.parse(bytes(26))
