"""
Confidential guests against qemu-storage-daemon.

It does not offer ACCESS_PLATFORM, so QEMU would turn it away; without a vIOMMU it would not have
been told of the bit anyway.  So what it does here is what it would do for such a guest.
"""

import pytest
from guest_peers.qsd import Connect, Daemon, exchange, noise

from vhostblk.guest import DeadlineError, GuestError, Range, Request
from vhostblk.guest.bounce import Bounced, SwiotlbOptions
from vhostblk.guest.confidential import Confidential, Kind
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.layout import MIB
from vhostblk.guest.personality import (
    CLOUD_HYPERVISOR,
    CROSVM,
    NO_REPLY_ACK,
    QEMU_COCO,
    QEMU_COCO_STRICT,
    Personality,
)
from vhostblk.spec.virtio_blk import Status

KINDS: list[Kind] = ["bounced", "sev", "snp", "tdx"]


@pytest.mark.parametrize("kind", KINDS)
def test_exchange(connect: Connect, daemon: Daemon, kind: Kind) -> None:
    """What is written is in the file and is read back, through two queues."""
    guest = connect(queues=2, confidential=kind)
    exchange(guest, daemon, rounds=3)
    assert guest.memory.damaged_pages() == frozenset()


SIZES = [512, 4096, 65536, 262144, MIB]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["bounced", "snp"])
def test_every_size(connect: Connect, daemon: Daemon, kind: Kind, size: int) -> None:
    """Requests up to 1 MiB go through, cut where a bounce set ends."""
    guest = connect(confidential=kind)
    guest.write(8, noise(size))
    assert daemon.image.read_bytes()[4096:][:size] == noise(size)
    assert guest.read(8, size) == noise(size)


def test_the_other_requests(connect: Connect, daemon: Daemon) -> None:
    """Flush, discard, write-zeroes and get-id are bounced too; errors come through."""
    guest = connect(confidential="snp")
    guest.write(0, noise(65536))
    guest.flush()
    guest.discard([Range(0, 64)])
    guest.write_zeroes([Range(64, 8)])
    assert daemon.image.read_bytes()[:65536] == bytes(72 * 512) + noise(65536)[72 * 512 :]
    assert guest.get_id() == b"vhost_user_blk"
    assert guest.run(Request.read(1 << 40, 512)).status == Status.IOERR


def test_a_tiny_pool_holds_requests_back(connect: Connect) -> None:
    """With more in flight than the pool holds requests wait for slots, and all are done."""
    options = SwiotlbOptions(nslabs=256, areas=2)
    guest = connect(queues=2, confidential=Confidential(kind="snp", swiotlb=options))
    tickets = [guest.submit(Request.read(8 * i, 65536), queue=i % 2) for i in range(24)]
    assert {guest.wait(ticket).status for ticket in tickets} == {Status.OK}
    assert guest.driver.requeues > 0
    assert isinstance(guest.dma, Bounced)
    assert 128 < guest.dma.high_water <= 256


def test_dynamic_pools(connect: Connect) -> None:
    """A dynamic pool grows instead; nothing but rings and descriptors is touched."""
    options = SwiotlbOptions(nslabs=128, dynamic=True)
    guest = connect(confidential=Confidential(kind="snp", swiotlb=options))
    tickets = [guest.submit(Request.read(8 * i, 65536)) for i in range(24)]
    assert {guest.wait(ticket).status for ticket in tickets} == {Status.OK}
    assert guest.driver.requeues == 0
    assert isinstance(guest.dma, Bounced)
    assert len(guest.dma.pools) > 1
    assert touched_pages(guest.memory) <= guest.dma.exposed


def test_free_slots_come_and_go(connect: Connect, daemon: Daemon) -> None:
    """Pages of the pool are converted while requests use others; nothing is lost by it."""
    guest = connect(confidential="snp")
    dma = guest.dma
    assert isinstance(dma, Bounced)
    for turn in range(4):
        tickets = [guest.submit(Request.write(8 * i, noise(4096, turn + i))) for i in range(6)]
        assert dma.recycle() > 1000
        assert {guest.wait(ticket).status for ticket in tickets} == {Status.OK}
        for i in range(6):
            assert daemon.image.read_bytes()[4096 * i :][:4096] == noise(4096, turn + i)
    assert touched_pages(guest.memory) <= dma.exposed


@pytest.mark.parametrize(
    "personality",
    [QEMU_COCO, CROSVM, CLOUD_HYPERVISOR, NO_REPLY_ACK],
    ids=["qemu", "crosvm", "cloud-hypervisor", "no REPLY_ACK"],
)
def test_front_ends(connect: Connect, daemon: Daemon, personality: Personality) -> None:
    """Those that do not turn it away get what they ask for."""
    guest = connect(confidential=Confidential(kind="tdx", personality=personality))
    exchange(guest, daemon, rounds=2)


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_only_rings_and_descriptors_are_touched(connect: Connect, kind: Kind) -> None:
    """The pages that exist after a mix of requests are those rings and descriptors named."""
    guest = connect(queues=2, confidential=kind)
    for i in range(16):
        guest.write(16 * i, noise(512 << i % 9, seed=i), queue=i % 2)
        guest.read(16 * i, 512 << i % 9, queue=i % 2)
    guest.get_id()
    assert isinstance(guest.dma, Bounced)
    assert touched_pages(guest.memory) == guest.dma.exposed


@pytest.mark.parametrize("kind", KINDS)
def test_firmware_then_system(connect: Connect, daemon: Daemon, kind: Kind) -> None:
    """The firmware reads through islands on one queue; the system after it through the pool."""
    guest = connect(queues=2, confidential=kind)
    guest.write(0, noise(4096))
    features = guest.features
    with guest.firmware_phase():
        assert not guest.session.indirect
        assert guest.read(0, 4096) == noise(4096)
        guest.write(8, noise(512, seed=2))
    assert guest.features == features
    exchange(guest, daemon, rounds=2)
    assert daemon.image.read_bytes()[4096:4608] == noise(512, seed=2)


def test_private_rings_read_as_noise(connect: Connect) -> None:
    """On SEV a driver that shares nothing gets no answer that is right."""
    guest = connect(confidential=Confidential(kind="sev", swiotlb=None), timeout=0.15)
    with pytest.raises(GuestError):
        guest.read(0, 512)


def test_private_rings_read_as_zeros(connect: Connect) -> None:
    """On SEV-SNP the daemon finds nothing on the ring, and waits."""
    guest = connect(confidential=Confidential(kind="snp", swiotlb=None), timeout=0.15)
    with pytest.raises(DeadlineError):
        guest.read(0, 512)


def test_strict_qemu_turns_it_away(connect: Connect) -> None:
    """Which is why there is no such back-end yet."""
    with pytest.raises(GuestError, match="iommu_platform=true is not supported"):
        connect(confidential=Confidential(kind="sev", personality=QEMU_COCO_STRICT))
