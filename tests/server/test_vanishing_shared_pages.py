"""
Shared memory of a confidential guest that is taken away, or was never there.

A guest_memfd that can be mapped would answer a touch of a private page with SIGBUS, and so do huge
pages of which there are none left: the request fails, the process and its other devices go on.
The reference engine cannot catch a SIGBUS (docs: the engines); what the kernel touches for it
fails with EFAULT.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_kit.disks import Slow
from server_kit.serving import Serving, serving, until

from vhostblk.disk.file import File
from vhostblk.disk.memory import Memory
from vhostblk.engine.choose import EngineName
from vhostblk.guest.blk import HEADER, UNWRITTEN_STATUS, Request
from vhostblk.guest.confidential import Kind
from vhostblk.guest.dma import share_pages
from vhostblk.guest.errors import BrokenQueueError
from vhostblk.guest.guest import Guest
from vhostblk.guest.layout import MIB, PAGE, Region
from vhostblk.guest.mapping import Mapping
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.shape import Buffer
from vhostblk.spec.virtio_blk import RequestType, Status

Connect = Callable[..., Guest]
SIZE = MIB
X = b"x" * 4096
SMALL, LARGE = Region(0, MIB), Region(1 << 32, 16 * MIB)
"""The bounce pool fits into the second one only."""
HUGE = Region(1 << 33, 2 * MIB)
KINDS: list[Kind] = ["bounced", "sev", "snp", "tdx"]
POOL = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture
def native() -> Iterator[Serving]:
    """Run a server with the C core."""
    with serving("native") as running:
        yield running


def memory_of(kind: Kind) -> GuestMemory:
    """Make two regions on memfds of their own."""
    mode = "plain" if kind == "bounced" else kind
    return GuestMemory([SMALL, LARGE], own_memfds=True, mode=mode)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bounce_pool_that_vanishes(
    kind: Kind, native: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The queue breaks, with one line: no status could be written, and an old one may read as success.

    Another device serves on, and this one the next guest.
    """
    path, other = native.add(Memory(SIZE)), native.add(Memory(SIZE))
    bystander = vhost_user_guest(other, confidential=kind)
    with memory_of(kind) as memory:
        guest = vhost_user_guest(path, memory=memory, confidential=kind)
        guest.write(0, X)
        memory.vanish(LARGE.gpa)
        with pytest.raises(BrokenQueueError):
            guest.read(0, 4096)
        bystander.write(0, X)
        assert bystander.read(0, 4096) == X
        guest.close()
    assert until(lambda: "is broken: guest memory vanished" in caplog.text)
    assert vhost_user_guest(path, confidential=kind).read(0, 4096) == X


@pytest.mark.parametrize("kind", KINDS)
def test_a_bounce_pool_that_vanishes_under_a_request(
    kind: Kind, native: Serving, vhost_user_guest: Connect
) -> None:
    """A Python disk at work on it returns; nothing is given back as done."""
    slow = Slow()
    path = native.add(slow)
    with memory_of(kind) as memory:
        guest = vhost_user_guest(path, memory=memory, confidential=kind)
        slow.set(free=False)
        ticket = guest.submit(Request.read(0, 4096))
        assert until(lambda: slow.waiting == 1)
        memory.vanish(LARGE.gpa)
        slow.set(free=True)
        with pytest.raises(BrokenQueueError):
            guest.wait(ticket)
        guest.close()
    vhost_user_guest(path, confidential=kind).write(0, X)


# ---- huge pages of which there are none ------------------------------------------------------


@pytest.fixture
def no_huge_pages() -> Iterator[int]:
    """Return a memfd of huge pages that cannot be touched: the pool is empty."""
    if not POOL.exists() or int(POOL.read_text()):
        pytest.skip(f"needs an empty pool of huge pages: 0 in {POOL}")
    fd = os.memfd_create("huge", os.MFD_HUGETLB)
    os.ftruncate(fd, HUGE.size)
    yield fd
    os.close(fd)


def transfer(guest: Guest, kind: RequestType, gpa: int) -> Status | None:
    """Run a request whose data are at *gpa*; its status, or None: the queue is broken."""
    own = share_pages(guest.memory, PAGE)
    guest.memory.write(own, HEADER.pack(kind, 0, 0) + bytes([UNWRITTEN_STATUS]))
    queue = guest.queues[0]
    buffer = Buffer(gpa, 4096, kind is RequestType.IN)
    ticket = queue.submit([Buffer(own, 16), buffer, Buffer(own + 16, 1, writable=True)])
    try:
        queue.wait([ticket], 5)
    except BrokenQueueError:
        return None
    return Status(guest.memory.read(own + 16, 1)[0])


def plug(guest: Guest, fd: int) -> None:
    """Tell the back-end of the huge pages, which we cannot even map."""
    nothing = memoryview(b"")
    guest.frontend.add_mem_reg(Mapping(HUGE, 0x6000_0000_0000, fd, 0, nothing, nothing))


@pytest.mark.parametrize("guest_kind", ["snp", "tdx"])
@pytest.mark.parametrize("kind", [RequestType.IN, RequestType.OUT])
def test_huge_pages_that_are_not_there_fail_in_the_kernel(  # noqa: PLR0913, PLR0917 - pytest names them
    engine: EngineName,
    kind: RequestType,
    guest_kind: Kind,
    no_huge_pages: int,
    tmp_path: Path,
    vhost_user_guest: Connect,
) -> None:
    """EFAULT is that request's IOERR, and nothing else's: the queue goes on."""
    image = tmp_path / "image"
    image.write_bytes(X * (SIZE // 4096))
    with serving(engine) as server:
        path = server.add(File(image))
        guest = vhost_user_guest(path, confidential=guest_kind)
        plug(guest, no_huge_pages)
        for _ in range(3):
            assert transfer(guest, kind, HUGE.gpa + 8192) is Status.IOERR
            assert guest.read(0, 4096) == X
        assert guest.queues[0].split.used_idx() == 6
        assert image.read_bytes() == X * (SIZE // 4096)


@pytest.mark.parametrize("kind", [RequestType.IN, RequestType.OUT])
def test_huge_pages_that_are_not_there_fail_under_our_hands(
    kind: RequestType, no_huge_pages: int, native: Serving, vhost_user_guest: Connect
) -> None:
    """SIGBUS ends the request, or its queue; the device serves the next guest, others this one."""
    path, other = native.add(Memory(SIZE)), native.add(Memory(SIZE))
    bystander = vhost_user_guest(other, confidential="snp")
    guest = vhost_user_guest(path, confidential="snp")
    plug(guest, no_huge_pages)
    assert transfer(guest, kind, HUGE.gpa) in {Status.IOERR, None}
    bystander.write(0, X)
    guest.close()
    assert vhost_user_guest(path, confidential="snp").read(0, 4096) == bytes(4096)
