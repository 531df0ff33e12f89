"""
Pages that a confidential guest takes away under a request, on either data plane.

Source: CONFIDENTIAL.md, 6.5: nothing else is corrupted, and nothing crashes.
"""

from pathlib import Path

import pytest
from server_kit.confidential import APART, PAGE, SIZE, Connect, noise, nothing_private_was_touched
from server_kit.disks import Slow
from server_kit.serving import Serving, until

from vhostblk.disk.file import CacheMode, File
from vhostblk.guest import (
    Request,
)
from vhostblk.guest.confidential import Kind
from vhostblk.spec.virtio_blk import Status


@pytest.mark.parametrize("kind", APART)
@pytest.mark.parametrize("lost", [[0], [3], [1, 2], range(4)], ids=["first", "last", "two", "all"])
def test_punch_under_a_read(
    kind: Kind, lost: list[int], server: Serving, vhost_user_guest: Connect
) -> None:
    """What is taken away while the disk reads into it is lost to it; every other page is right."""
    slow = Slow(SIZE)
    slow.data[: 4 * PAGE] = noise(4 * PAGE)
    guest = vhost_user_guest(server.add(slow), confidential=kind)
    other = guest.submit(Request.read(0, PAGE))
    guest.wait(other)
    slow.set(free=False)
    ticket = guest.submit(Request.read(0, 4 * PAGE))
    assert until(lambda: slow.waiting == 1)
    pages = [ticket.shown[1].gpa + PAGE * i for i in lost]
    for page in pages:
        guest.memory.set_private(page, PAGE)
        guest.memory.write(page, b"the guest's own".ljust(PAGE, b"."))
    slow.set(free=True)
    guest.queues[0].wait([ticket.ticket], 5)
    for page in pages:
        assert guest.memory.read(page, PAGE) == b"the guest's own".ljust(PAGE, b".")
        guest.memory.set_shared(page, PAGE)
    got = guest.wait(ticket)
    assert got.status == Status.OK
    for i in set(range(4)) - set(lost):
        assert got.data[PAGE * i : PAGE * (i + 1)] == noise(4 * PAGE)[PAGE * i : PAGE * (i + 1)]
    assert guest.read(0, 4 * PAGE) == noise(4 * PAGE)
    nothing_private_was_touched(guest)


@pytest.mark.parametrize("kind", APART)
def test_punch_under_a_write(kind: Kind, server: Serving, vhost_user_guest: Connect) -> None:
    """The page that went is written as what the host finds there; the others as they are."""
    slow = Slow(SIZE)
    guest = vhost_user_guest(server.add(slow), confidential=kind)
    slow.set(free=False)
    data = noise(4 * PAGE)
    ticket = guest.submit(Request.write(0, data))
    assert until(lambda: slow.waiting == 1)
    page = ticket.shown[1].gpa + PAGE
    guest.memory.set_private(page, PAGE)
    guest.memory.write(page, b"a secret" * (PAGE // 8))
    slow.set(free=True)
    guest.queues[0].wait([ticket.ticket], 5)
    guest.memory.set_shared(page, PAGE)
    guest.memory.write(page, data[PAGE : 2 * PAGE])
    assert guest.wait(ticket).status == Status.OK
    assert b"a secret" not in slow.data
    assert slow.data[:PAGE] == data[:PAGE]
    assert slow.data[2 * PAGE : 4 * PAGE] == data[2 * PAGE :]
    assert slow.data[PAGE : 2 * PAGE] in (data[PAGE : 2 * PAGE], bytes(PAGE))


@pytest.mark.parametrize("kind", APART)
@pytest.mark.parametrize("cache", [CacheMode.WRITEBACK, CacheMode.NONE])
def test_punch_while_the_kernel_reads(
    kind: Kind, cache: CacheMode, server: Serving, vhost_user_guest: Connect, direct_image: Path
) -> None:
    """The same against a file, at whatever moment: the other requests' bytes are right."""
    data = noise(65536)
    direct_image.write_bytes(data.ljust(SIZE, b"\0"))
    guest = vhost_user_guest(server.add(File(direct_image, cache=cache)), confidential=kind)
    for turn in range(12):
        tickets = [guest.submit(Request.read(0, 65536)) for _ in range(4)]
        victim = tickets[turn % 4]
        page = victim.shown[1].gpa + turn * PAGE
        guest.memory.set_private(page, PAGE)
        guest.queues[0].wait([ticket.ticket for ticket in tickets], 5)
        assert guest.memory.read(page, PAGE) == bytes(PAGE), "the guest's own page"
        guest.memory.set_shared(page, PAGE)
        for ticket in tickets:
            got = guest.wait(ticket)
            if ticket is victim:
                at = turn * PAGE
                got_rest = got.data[:at] + got.data[at + PAGE :]
                assert got.status == Status.IOERR or got_rest == data[:at] + data[at + PAGE :]
            else:
                assert got.data == data
    nothing_private_was_touched(guest)


@pytest.mark.parametrize("kind", APART)
@pytest.mark.parametrize("part", ["desc", "avail", "used"])
def test_ring_taken_away_under_a_request(
    kind: Kind, part: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """A guest that unshares its ring loses its queue; the other one and the next guest serve."""
    slow = Slow(SIZE)
    path = server.add(slow, num_queues=2)
    guest = vhost_user_guest(path, queues=2, queue_size=256, confidential=kind, timeout=2)
    for _ in range(3):
        guest.read(0, 512)
    slow.set(free=False)
    guest.submit(Request.read(0, PAGE))
    assert until(lambda: slow.waiting == 1)
    at = getattr(guest.queues[0].ring.addresses, part) // PAGE * PAGE
    guest.memory.set_private(at, PAGE)
    slow.set(free=True)
    guest.queues[0].notify()
    guest.write(64, noise(PAGE), queue=1)
    assert guest.read(64, PAGE, queue=1) == noise(PAGE)
    guest.memory.set_shared(at, PAGE)
    guest.close()
    assert vhost_user_guest(path, confidential=kind).read(64, PAGE) == noise(PAGE)
