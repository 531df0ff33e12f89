"""
The list of what a back-end for confidential guests must do, line by line, on either data plane.

Source: CONFIDENTIAL.md, 6.5.  Further lines of it: IOTLB (test_iommu_personalities), rings and
statuses outside the list and the table of modes (test_policy), detectors, growth and canaries.
"""

from pathlib import Path

import pytest
from server_kit.confidential import (
    APART,
    KINDS,
    MIB,
    PAGE,
    SIZE,
    Connect,
    noise,
    nothing_private_was_touched,
    pool,
)
from server_kit.disks import Slow, Stuck
from server_kit.serving import Serving, until

from vhostblk.disk.file import File
from vhostblk.disk.memory import Memory
from vhostblk.guest import (
    BrokenQueueError,
    Confidential,
    Framing,
    GuestMemory,
    Protection,
    Range,
    Region,
    Request,
    SwiotlbOptions,
    touched_pages,
)
from vhostblk.guest.confidential import MODES, Kind
from vhostblk.guest.layout import pc_layout
from vhostblk.spec.virtio_blk import Status

SIZES = [512, 4096, 65536, 262144, MIB]
ENCRYPTED_SIZE = 16384
"""A guest that encrypts its own buffers is slow: beyond this its tests are marked slow."""


def image(directory: Path) -> File:
    (directory / "image").write_bytes(bytes(SIZE))
    return File(directory / "image", discard=True)


def cases() -> list[object]:
    return [
        pytest.param(
            kind, size, marks=[pytest.mark.slow] if kind == "sev" and size > ENCRYPTED_SIZE else []
        )
        for kind in KINDS
        for size in SIZES
    ]


# ---- bounced requests ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size"), cases())
def test_every_request_of_every_size(
    kind: Kind, size: int, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Read, write, flush, discard, write-zeroes and get-id, compared with the file itself."""
    path = server.add(image(tmp_path), num_queues=2, serial="list")
    guest = vhost_user_guest(path, queues=2, confidential=kind)
    data = noise(size)
    guest.write(8, data)
    guest.flush(queue=1)
    assert (tmp_path / "image").read_bytes() == bytes(PAGE) + data + bytes(SIZE - PAGE - size)
    assert guest.read(8, size, queue=1) == data
    half = max(size // 2 // PAGE * PAGE, 512)
    guest.discard([Range(8, half // 512)])
    guest.write_zeroes([Range(8 + size // 512, 8)], queue=1)
    assert guest.read(8, size) == bytes(half) + data[half:]
    assert guest.get_id(queue=1) == b"list"
    assert (tmp_path / "image").read_bytes()[PAGE:][:size] == bytes(half) + data[half:]
    nothing_private_was_touched(guest)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("indirect", [True, False], ids=["indirect", "direct"])
def test_every_framing(
    kind: Kind, server: Serving, vhost_user_guest: Connect, *, indirect: bool
) -> None:
    """Each descriptor is a slot of its own, wherever the request is cut."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential=kind)
    data = noise(1024)
    write, read = Request.write(3, data), Request.read(3, 1024)
    for cut in (16, 300) if kind == "sev" else (7, 16, 300):
        assert guest.run(write, framing=Framing.every(cut, write, indirect=indirect)).status == 0
        got = guest.run(read, framing=Framing.every(cut, read, indirect=indirect))
        assert (got.status, got.data, got.used_length) == (Status.OK, data, 1025)
    nothing_private_was_touched(guest)


@pytest.mark.parametrize("kind", KINDS)
def test_depth_up_to_pool_exhaustion(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """At each depth every request is done with its own bytes; a full pool holds back, no more."""
    size = 4096 if kind == "sev" else 16384
    swiotlb = SwiotlbOptions(nslabs=256, areas=2)
    path = server.add(Memory(SIZE), num_queues=2)
    guest = vhost_user_guest(path, queues=2, confidential=Confidential(kind=kind, swiotlb=swiotlb))
    blocks = [noise(size, seed) for seed in range(52 if kind == "sev" else 48)]
    for i, block in enumerate(blocks):
        guest.write(i * size // 512, block, queue=i % 2)
    for depth in (1, 8, len(blocks)):
        tickets = [
            guest.submit(Request.read(i * size // 512, size), queue=i % 2) for i in range(depth)
        ]
        assert [guest.wait(ticket).data for ticket in tickets] == blocks[:depth]
    assert guest.driver.requeues > 0
    assert pool(guest).high_water > 200
    assert pool(guest).used == 0
    nothing_private_was_touched(guest)


# ---- pages that change hands -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_conversion_of_free_slots_during_load(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """Free pages of the pool go and come back while others are in use: all bytes are right."""
    size = 4096 if kind == "sev" else 16384
    guest = vhost_user_guest(
        server.add(Memory(SIZE)),
        confidential=Confidential(kind=kind, swiotlb=SwiotlbOptions(nslabs=256)),
    )
    blocks = [noise(size, seed) for seed in range(6)]
    for i, block in enumerate(blocks):
        guest.write(i * size // 512, block)
    converted = 0
    for turn in range(3 if kind == "sev" else 8):
        tickets = [guest.submit(Request.read(i * size // 512, size)) for i in range(len(blocks))]
        converted += pool(guest).recycle()
        data = noise(size, 100 + turn)
        tickets.append(guest.submit(Request.write(2048, data)))
        assert [guest.wait(ticket).data for ticket in tickets[:-1]] == blocks
        assert guest.wait(tickets[-1]).status == Status.OK
        converted += pool(guest).recycle()
        assert guest.read(2048, size) == data
    assert converted > 300
    nothing_private_was_touched(guest)
    if kind in APART:
        pool(guest).recycle()
        left = touched_pages(guest.memory)
        assert len(left) < 16, "what was given back stays given back"


@pytest.mark.parametrize("kind", KINDS)
def test_transient_pools_during_load(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """A dynamic pool is shared for one request and private again behind it, beside others."""
    size = 4096 if kind == "sev" else 65536
    options = SwiotlbOptions(nslabs=16 if kind == "sev" else 128, dynamic=True, grow=32)
    guest = vhost_user_guest(
        server.add(Memory(SIZE)), confidential=Confidential(kind=kind, swiotlb=options)
    )
    blocks = [noise(size, seed) for seed in range(6)]
    for i, block in enumerate(blocks):
        guest.write(i * size // 512, block)
    most = 0
    for _ in range(3):
        tickets = [guest.submit(Request.read(i * size // 512, size)) for i in range(len(blocks))]
        most = max(most, len(pool(guest).pools))
        assert [guest.wait(ticket).data for ticket in tickets] == blocks
    assert most > 2
    nothing_private_was_touched(guest)
    if kind in APART:
        assert touched_pages(guest.memory) <= guest.memory.shared_pages


@pytest.mark.parametrize("kind", KINDS)
def test_restart_with_a_moved_window_and_a_request_left_behind(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """A read that the disk was slow with is given up, and lands nowhere."""
    slow = Slow(SIZE)
    slow.data[:PAGE] = noise(PAGE)
    guest = vhost_user_guest(server.add(slow, drain_seconds=0.05), confidential=kind)
    guest.read(0, 512)
    slow.set(free=False)
    old = guest.submit(Request.read(0, PAGE)).shown[1].gpa
    assert until(lambda: slow.waiting == 1)
    before = pool(guest).pools
    guest.reboot()
    assert pool(guest).pools != before
    assert slow.cancelled == 1
    found = guest.memory.read(old, PAGE)
    slow.set(free=True)
    assert guest.read(0, PAGE) == noise(PAGE)
    if kind != "bounced" and not guest.memory.is_shared(old):
        assert guest.memory.read(old, PAGE) == found
    nothing_private_was_touched(guest)


@pytest.mark.parametrize("kind", KINDS)
def test_restart_while_the_disk_does_not_come_back(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """
    A disk that returns long after its read was given up writes nothing into the guest.

    Its memory was taken from it: the old window is private by then, or somebody else's.  A write
    that was given up before the disk heard of it is not done at all.
    """
    stuck = Stuck()
    stuck.data[:PAGE] = noise(PAGE)
    guest = vhost_user_guest(server.add(stuck, drain_seconds=0.05), confidential=kind)
    guest.submit(Request.read(0, PAGE))
    guest.submit(Request.write(8, b"never" * 1024))
    assert stuck.stuck.wait(5)
    guest.reboot()
    later = guest.submit(Request.read(8, PAGE))
    stuck.let_go.set()
    assert guest.wait(later).data == bytes(PAGE)
    assert guest.read(0, PAGE) == noise(PAGE)
    nothing_private_was_touched(guest)


# ---- other memories --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_memory_on_both_sides_of_the_hole(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """Two regions, below and above 4 GiB, as a large guest has them."""
    path = server.add(Memory(SIZE), num_queues=2)
    with GuestMemory(pc_layout(16 * MIB, 16 * MIB), mode=MODES[kind]) as memory:
        guest = vhost_user_guest(path, queues=2, memory=memory, confidential=kind)
        for turn in range(3):
            guest.write(64 * turn, noise(8192, turn), queue=turn % 2)
            assert guest.read(64 * turn, 8192) == noise(8192, turn)
            guest.reboot()
        nothing_private_was_touched(guest)
        guest.close()


@pytest.mark.parametrize("kind", APART)
def test_pages_that_keep_what_was_shared(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """Huge pages are not punched: what was shared before is there still, and is not looked at."""
    path = server.add(Memory(SIZE))
    with GuestMemory(
        [Region(0, 16 * MIB)], mode=Protection(mode=MODES[kind], punch=False)
    ) as memory:
        guest = vhost_user_guest(path, memory=memory, confidential=kind)
        for turn in range(3):
            tickets = [guest.submit(Request.write(8 * i, noise(PAGE, i))) for i in range(8)]
            pool(guest).recycle()
            assert {guest.wait(ticket).status for ticket in tickets} == {Status.OK}
            assert guest.read(0, PAGE) == noise(PAGE, 0)
            guest.reboot()
            assert guest.read(8 * 7, PAGE) == noise(PAGE, 7), turn
        guest.close()


def test_pages_that_move_in_the_machine(server: Serving, vhost_user_guest: Connect) -> None:
    """The ciphertext of private pages changes under the guest; shared ones stay as they are."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential="sev")
    data = noise(PAGE)
    guest.write(0, data)
    private = guest.memory.allocate(PAGE, align=PAGE)
    guest.memory.write(private, data)
    ticket = guest.submit(Request.read(0, PAGE))
    guest.memory.move_page(private)
    guest.memory.move_page(ticket.shown[1].gpa)
    assert guest.wait(ticket).data == data
    assert guest.memory.read(private, PAGE) == data
    assert guest.memory.damaged_pages() == frozenset()


def test_tiny_queue_that_is_polled(server: Serving, vhost_user_guest: Connect) -> None:
    """An SVSM has one queue of four, takes no calls and puts one buffer at a time on it."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), queue_size=4, confidential="snp")
    guest.frontend.set_vring_call(0, None)
    guest.queues[0].take_calls()
    before = guest.queues[0].counters.calls
    for turn in range(9):
        ticket = guest.submit(
            Request.write(8 * turn, noise(PAGE, turn)), framing=Framing(indirect=False)
        )
        assert until(lambda: bool(guest.queues[0].reap()))
        assert guest.wait(ticket).status == Status.OK
    guest.queues[0].take_calls()
    assert guest.queues[0].counters.calls == before
    guest.frontend.set_vring_call(0, guest.queues[0].call)
    assert guest.read(64, PAGE) == noise(PAGE, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_in_a_descriptor_harms_one_queue(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """A driver that writes noise for descriptors: the queue breaks, the other serves."""
    guest = vhost_user_guest(server.add(Memory(SIZE), num_queues=2), queues=2, confidential=kind)
    ring = guest.queues[0].ring
    guest.read(0, 512)
    guest.memory.write(ring.addresses.desc, noise(ring.shape.desc_bytes, seed=3))
    ring.publish(7)
    guest.queues[0].notify()
    with pytest.raises(BrokenQueueError):
        guest.queues[0].wait_some(5)
    guest.write(0, noise(PAGE), queue=1)
    assert guest.read(0, PAGE, queue=1) == noise(PAGE)
    nothing_private_was_touched(guest)
