"""The page table of the fake guest's IOMMU."""

from collections.abc import Iterator

import pytest
from guest_peers.scripted import offers, scripted

from vhostblk.guest import (
    DEFAULT_FEATURES,
    DEFAULT_PROTOCOL_FEATURES,
    FrontEnd,
    Guest,
)
from vhostblk.guest.dma import Direct
from vhostblk.guest.errors import GuestError
from vhostblk.guest.iommu import FLUSHES, TOP, Flush, Iommu, IommuOptions, Mapped
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.negotiate import Wanted
from vhostblk.guest.remapped import Remapped
from vhostblk.guest.wire import Iotlb
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import IotlbType, Request

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


def test_what_a_flush_tells(memory: GuestMemory) -> None:
    """Pages one by one; a power of two around them; all but the interrupt window, up to 2^64."""
    told: dict[Flush, list[tuple[int, int]]] = {}
    flushes: list[Flush] = ["page", "aligned", "global"]
    for flush in flushes:
        iommu = Iommu(memory, flush)
        iommu.map(0x5000, PAGE, 1)
        one = iommu.find(iommu.map(0x10000, 3 * PAGE, 1))
        assert one is not None
        told[flush] = iommu._flushes(one)
    assert told["page"] == [(TOP - n * PAGE, PAGE) for n in (4, 3, 2)]
    assert told["aligned"] == [(TOP - 4 * PAGE, 4 * PAGE)], "with a neighbour that stays mapped"
    assert told["global"] == list(FLUSHES)
    assert sum(FLUSHES[1]) == 1 << 64


def test_identity(memory: GuestMemory) -> None:
    """All RAM leads to itself, and nothing else does; what was there before comes back."""
    iommu = Iommu(memory)
    before = iommu.map(0x10000, 16, 1)
    iommu.reset(firmware=True)
    assert iommu.map(0x20010, 16, 2) == 0x20010
    assert iommu.find(0x20010) == Mapped(0x20000, 0x20000, PAGE, 3)
    assert iommu.find(64 << 20) is None
    iommu.unmap(0x20010)
    iommu.unmap(before)
    iommu.reset(firmware=False)
    assert iommu.find(0x20010) is iommu.find(before) is None
    assert Iommu(memory, IommuOptions(identity=True)).map(0x30000, 16, 1) == 0x30000


def test_iovas_run_out(memory: GuestMemory) -> None:
    """There are as many as fit below the top."""
    iommu = Iommu(memory, IommuOptions(top=2 * PAGE))
    assert iommu.map(0x10000, 2 * PAGE, 1) == 0
    with pytest.raises(GuestError, match="no 4096 bytes of IOVAs are left below 0x2000"):
        iommu.map(0x10000, 1, 1)


@pytest.mark.parametrize("top", [0, 100, -PAGE])
def test_impossible_options(memory: GuestMemory, top: int) -> None:
    """They say what is possible."""
    with pytest.raises(GuestError, match="not a multiple of 4096"):
        Iommu(memory, IommuOptions(top=top))
    with pytest.raises(GuestError, match="'lazy': page, aligned or global"):
        Iommu(memory, "lazy")  # type: ignore[arg-type]


def test_nobody_listens_to_a_device_that_is_stopped(memory: GuestMemory) -> None:
    """Nothing can be told then; a mapping can go all the same."""
    iommu = Iommu(memory)
    at = iommu.map(0x10000, 16, 1)
    with pytest.raises(GuestError, match="nobody listens"):
        iommu.tell(at)
    with pytest.raises(GuestError, match="nobody listens"):
        iommu.flood(1)
    with pytest.raises(GuestError, match="nobody listens"):
        iommu.invalidate(at, 1)
    iommu.unmap(at)


@pytest.mark.parametrize("identity", [True, False])
def test_used_rings_are_told_at_a_start(*, identity: bool) -> None:
    """Unasked, as QEMU does; of a queue that is not set up IOVA 0, if anything is mapped there."""
    offered = DEFAULT_FEATURES | vr.F_ACCESS_PLATFORM
    with (
        scripted(offers(offered, int(DEFAULT_PROTOCOL_FEATURES))) as backend,
        Guest(
            FrontEnd.over(backend.front),
            Wanted(queues=2),
            iommu=IommuOptions(identity=identity),
        ) as guest,
    ):
        guest.start([0])
        guest.frontend.get_features()
        told = [Iotlb.parse(m.payload) for m in backend.seen if m.request == Request.IOTLB_MSG]
        assert guest.session.rings is not None
        used = guest.session.rings.shown(0).used
        assert [one.iova for one in told] == [used - used % PAGE, 0][: 1 + identity]
        assert {(one.size, one.kind) for one in told} == {(PAGE, IotlbType.UPDATE)}


def test_message_is_32_bytes() -> None:
    """Golden bytes; another size is an error."""
    one = Iotlb(0x1000, 0x2000, 0x3000, 3, 2)
    raw = (0x1000).to_bytes(8, "little") + (0x2000).to_bytes(8, "little")
    assert one.pack() == raw + (0x3000).to_bytes(8, "little") + b"\x03\x02" + bytes(6)
    assert Iotlb.parse(one.pack()) == one
    with pytest.raises(GuestError, match="26 bytes"):
        Iotlb.parse(bytes(26))
