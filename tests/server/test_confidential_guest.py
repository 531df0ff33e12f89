"""Confidential guests on our server, with both data planes."""

from collections.abc import Callable

import pytest
from server_kit.serving import Serving

from vhostblk.disk.memory import Memory
from vhostblk.guest.blk import Range, Request
from vhostblk.guest.bounce import Bounced, SwiotlbOptions
from vhostblk.guest.confidential import Confidential, Kind
from vhostblk.guest.errors import BrokenQueueError, DeadlineError
from vhostblk.guest.guest import Guest
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.layout import MIB, Region
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.pages import ADDRESS_BIT
from vhostblk.guest.personality import (
    CLOUD_HYPERVISOR,
    CROSVM,
    NO_REPLY_ACK,
    QEMU_COCO,
    QEMU_COCO_STRICT,
    Personality,
)
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
SIZE = 4 << 20
KINDS: list[Kind] = ["bounced", "sev", "snp", "tdx"]


def noise(length: int, seed: int = 1) -> bytes:
    return bytes((i * 31 + seed + i // 256) & 0xFF for i in range(512)) * (length // 512)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(kind: Kind, server: Serving, vhost_user_guest: Connect) -> None:
    """Every request works in every kind of guest, on two queues."""
    path = server.add(Memory(SIZE), num_queues=2, serial="bounced")
    guest = vhost_user_guest(path, queues=2, confidential=kind)
    for i, size in enumerate((512, 4096, 20480)):
        guest.write(64 * i, noise(size, i), queue=i % 2)
        assert guest.read(64 * i, size, queue=(i + 1) % 2) == noise(size, i)
    guest.flush()
    guest.discard([Range(64, 8)])
    guest.write_zeroes([Range(128, 8)])
    assert guest.read(128, 20480) == bytes(4096) + noise(20480, 2)[4096:]
    assert guest.get_id() == b"bounced"
    assert guest.run(Request.read(1 << 40, 512)).status == Status.IOERR
    assert guest.memory.damaged_pages() == frozenset()


@pytest.mark.parametrize("size", [65536, 262144, 1 << 20])
def test_long_requests(size: int, server: Serving, vhost_user_guest: Connect) -> None:
    """Requests up to 1 MiB arrive in pieces of a bounce set."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential="snp")
    guest.write(8, noise(size))
    assert guest.read(8, size) == noise(size)


@pytest.mark.slow
def test_long_requests_of_an_encrypted_guest(server: Serving, vhost_user_guest: Connect) -> None:
    """The same with a guest whose own copies are encrypted."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential="sev")
    guest.write(8, noise(1 << 20))
    assert guest.read(8, 1 << 20) == noise(1 << 20)


def test_pool_exhaustion(server: Serving, vhost_user_guest: Connect) -> None:
    """With more in flight than the pool holds all requests are done, none fails."""
    confidential = Confidential(kind="snp", swiotlb=SwiotlbOptions(nslabs=256, areas=2))
    path = server.add(Memory(SIZE), num_queues=2)
    guest = vhost_user_guest(path, queues=2, confidential=confidential)
    guest.write(0, noise(65536))
    tickets = [guest.submit(Request.read(0, 65536), queue=i % 2) for i in range(24)]
    assert {guest.wait(ticket).data for ticket in tickets} == {noise(65536)}
    assert guest.driver.requeues > 0


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_only_rings_and_descriptors_are_touched(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """
    The pages of guest memory that exist are those of rings and descriptors, exactly.

    Proof by hole map; tests/guest/test_confidential.py shows that it catches a back-end that
    reads one byte of the next page.
    """
    path = server.add(Memory(SIZE), num_queues=2)
    guest = vhost_user_guest(path, queues=2, confidential=kind)
    for i in range(16):
        guest.write(16 * i, noise(512 << i % 9, i), queue=i % 2)
        guest.read(16 * i, 512 << i % 9, queue=i % 2)
    guest.get_id()
    guest.flush()
    guest.discard([Range(0, 8)])
    guest.run(Request.read(1 << 40, 512))
    assert isinstance(guest.dma, Bounced)
    assert touched_pages(guest.memory) == guest.dma.exposed


def test_dynamic_pools_are_given_back(server: Serving, vhost_user_guest: Connect) -> None:
    """Transient pools become private while the device runs; it touches none of them again."""
    options = SwiotlbOptions(nslabs=128, dynamic=True)
    path = server.add(Memory(SIZE))
    guest = vhost_user_guest(path, confidential=Confidential(kind="snp", swiotlb=options))
    for _ in range(3):
        tickets = [guest.submit(Request.read(0, 65536)) for _ in range(12)]
        assert {guest.wait(ticket).status for ticket in tickets} == {Status.OK}
    assert touched_pages(guest.memory) <= guest.memory.shared_pages


@pytest.mark.parametrize("kind", KINDS)
def test_firmware_then_system(kind: Kind, server: Serving, vhost_user_guest: Connect) -> None:
    """Islands first, the pool afterwards; nothing private is touched by the handover."""
    guest = vhost_user_guest(server.add(Memory(SIZE), num_queues=2), queues=2, confidential=kind)
    guest.write(0, noise(4096))
    with guest.firmware_phase():
        for _ in range(3):
            assert guest.read(0, 4096) == noise(4096)
        if kind in {"snp", "tdx"}:
            assert touched_pages(guest.memory) <= guest.memory.shared_pages
    assert guest.read(0, 4096, queue=1) == noise(4096)
    if kind in {"snp", "tdx"}:
        assert touched_pages(guest.memory) <= guest.memory.shared_pages


@pytest.mark.parametrize(
    "personality",
    [QEMU_COCO, QEMU_COCO_STRICT, CROSVM, CLOUD_HYPERVISOR, NO_REPLY_ACK],
    ids=["qemu", "qemu strict", "crosvm", "cloud-hypervisor", "no REPLY_ACK"],
)
def test_front_ends(personality: Personality, server: Serving, vhost_user_guest: Connect) -> None:
    """
    Front-ends that hide bit 33, set it without an IOTLB or lack a protocol feature are served.

    QEMU's own refusals do not apply: the bit is offered, with what it needs.
    """
    confidential = Confidential(kind="snp", personality=personality)
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential=confidential)
    guest.write(0, noise(4096))
    assert guest.read(0, 4096) == noise(4096)


@pytest.mark.parametrize("kind", KINDS)
def test_restart_with_a_moved_window(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """After a reboot rings and pool lie elsewhere; the old places are left alone."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential=kind)
    assert isinstance(guest.dma, Bounced)
    before = guest.dma.pools
    guest.write(0, noise(4096))
    for _ in range(4):
        guest.submit(Request.read(0, 65536))
    guest.reboot()
    assert guest.read(0, 4096) == noise(4096)
    assert isinstance(guest.dma, Bounced)
    assert guest.dma.pools != before
    if kind in {"snp", "tdx"}:
        assert touched_pages(guest.memory) == guest.dma.exposed


def test_memory_that_is_not_shared(server: Serving, vhost_user_guest: Connect) -> None:
    """With RAM that lacks share=on the rings read as zeros: an idle queue, and no harm."""
    path = server.add(Memory(SIZE))
    with GuestMemory([Region(0, 16 * MIB)], share=False) as memory:
        guest = vhost_user_guest(path, memory=memory, timeout=0.1)
        with pytest.raises(DeadlineError):
            guest.read(0, 512)
        guest.close()
    assert vhost_user_guest(path).read(0, 512) == bytes(512)


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_conversions_beside_running_io(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """Pages that come and go while requests run are of no concern to the device."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential=kind)
    guest.write(0, noise(65536))
    pages = guest.memory.allocate(64 * 4096, align=4096)
    for i in range(8):
        tickets = [guest.submit(Request.read(0, 65536)) for _ in range(4)]
        guest.memory.set_shared(pages, 64 * 4096)
        guest.memory.write(pages, bytes([i]) * 64 * 4096)
        guest.memory.set_private(pages, 64 * 4096)
        assert {guest.wait(ticket).data for ticket in tickets} == {noise(65536)}
    assert isinstance(guest.dma, Bounced)
    assert touched_pages(guest.memory) == guest.dma.exposed


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_a_buffer_taken_away_in_flight(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """A guest that unshares a buffer too early loses those bytes, and nothing else breaks."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential=kind)
    guest.write(0, noise(65536))
    ticket = guest.submit(Request.read(0, 65536))
    data = ticket.shown[1]
    guest.memory.set_private(data.gpa, data.length)
    guest.queues[0].wait([ticket.ticket], 5)
    assert guest.memory.read(data.gpa, data.length) == bytes(data.length), "the guest's own page"
    guest.memory.set_shared(data.gpa, data.length)
    assert guest.wait(ticket).status == Status.OK
    assert guest.read(0, 65536) == noise(65536)
    assert isinstance(guest.dma, Bounced)
    assert touched_pages(guest.memory) <= guest.dma.exposed


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ciphertext_rings_break_the_queue(
    seed: int, server: Serving, vhost_user_guest: Connect
) -> None:
    """
    Rings that read as noise break their queue; the process serves the next guest.

    The seed decides the noise, so it is the same each time; with these the index is far ahead.
    """
    path = server.add(Memory(SIZE))
    confidential = Confidential(kind="sev", swiotlb=None, seed=seed)
    guest = vhost_user_guest(path, confidential=confidential)
    with pytest.raises(BrokenQueueError):
        guest.read(0, 512)
    guest.close()
    assert vhost_user_guest(path).read(0, 512) == bytes(512)


def test_zero_rings_leave_the_queue_idle(server: Serving, vhost_user_guest: Connect) -> None:
    """Rings that read as zeros are empty rings; the process serves the next guest."""
    path = server.add(Memory(SIZE))
    unshared = Confidential(kind="snp", swiotlb=None)
    guest = vhost_user_guest(path, confidential=unshared, timeout=0.1)
    with pytest.raises(DeadlineError):
        guest.read(0, 512)
    guest.close()
    assert vhost_user_guest(path).read(0, 512) == bytes(512)


@pytest.mark.parametrize("kind", ["sev", "tdx"])
def test_an_address_bit_is_not_stripped(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """A C-bit or a shared bit in descriptors is an address outside memory: the queue breaks."""
    path = server.add(Memory(SIZE))
    confidential = Confidential(kind=kind, address_bit=ADDRESS_BIT[kind])
    guest = vhost_user_guest(path, confidential=confidential)
    with pytest.raises(BrokenQueueError):
        guest.read(0, 512)
    assert guest.queues[0].split.used_idx() == 0
