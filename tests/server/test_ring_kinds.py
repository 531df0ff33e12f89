"""Every kind of ring a driver may choose, served by a real server over its socket."""

import random
from collections.abc import Callable

import pytest
from server_kit.disks import SIZE
from server_kit.serving import Serving

from vhostblk.disk.memory import Memory
from vhostblk.guest import DEFAULT_FEATURES, Framing, Guest, QueueOptions, Request
from vhostblk.spec.virtio_blk import Status
from vhostblk.spec.virtio_ring import F_RING_RESET

Connect = Callable[..., Guest]
KINDS = {
    "split": {},
    "split, in order": {"in_order": True},
    "packed": {"packed": True},
    "packed, in order": {"packed": True, "in_order": True},
}
RINGS = [(kind, size) for kind in KINDS for size in ((4, 7, 30) if "packed" in kind else (4, 32))]
SECTORS = SIZE // 512


@pytest.mark.parametrize(("kind", "size"), RINGS)
def test_what_is_written_is_read(
    kind: str, size: int, server: Serving, vhost_user_guest: Connect
) -> None:
    """
    Bytes come back through rings of any size, many times around, several requests at once.

    Spec: virtio 1.3, 2.7.9; 2.8.
    """
    path = server.add(Memory(SIZE), num_queues=2)
    guest = vhost_user_guest(path, queues=2, queue_size=size, **KINDS[kind])
    dice = random.Random(size)
    stored = bytearray(SIZE)
    for _ in range(30):
        sectors = dice.sample(range(0, SECTORS - 8, 8), 3)
        tickets = []
        for sector in sectors:
            data = dice.randbytes(dice.choice((512, 1024, 4096)))
            stored[sector * 512 : sector * 512 + len(data)] = data
            tickets.append(guest.submit(Request.write(sector, data)))
        assert all(guest.wait(ticket).status == Status.OK for ticket in tickets)
        for sector in sectors:
            assert guest.read(sector, 4096, queue=1) == stored[sector * 512 :][:4096]


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_may_be_longer_than_its_ring(
    kind: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """
    Tables of 515 descriptors, as Windows has them, in a ring of 16.

    Spec: virtio 1.3, 2.7.5.3; 2.8.7.
    """
    guest = vhost_user_guest(server.add(Memory(SIZE)), queue_size=16, **KINDS[kind])
    data = random.Random(515).randbytes(513 * 512)
    for _ in range(2):
        write, read = Request.write(3, data), Request.read(3, len(data))
        assert guest.run(write, framing=Framing.pieces(512, write)).status == Status.OK
        assert guest.run(read, framing=Framing.pieces(512, read)).data == data


@pytest.mark.parametrize("kind", KINDS)
def test_one_queue_is_reset_while_another_runs(
    kind: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """
    It goes on with a ring of another size, elsewhere, from the start; its neighbour never stops.

    Spec: virtio 1.3, 2.6.1; vhost-user, "VHOST_USER_GET_VRING_BASE".
    """
    path = server.add(Memory(SIZE), num_queues=2, ring_reset=True)
    features = DEFAULT_FEATURES | F_RING_RESET
    guest = vhost_user_guest(path, queues=2, queue_size=64, features=features, **KINDS[kind])
    assert guest.features & F_RING_RESET
    for turn, size in enumerate((8, 64, 16, 32)):
        block = bytes([turn + 1]) * 4096
        stays = [guest.submit(Request.write(8 * i, block), queue=1) for i in range(5)]
        assert guest.read(0, 512) is not None
        guest.reset_queue(0, QueueOptions(size=size))
        stays += [guest.submit(Request.write(8 * i, block), queue=1) for i in range(5, 10)]
        for _ in range(2 * size):
            guest.flush()
        assert all(guest.wait(ticket).status == Status.OK for ticket in stays)
        assert guest.read(0, 10 * 4096) == 10 * block


def test_reset_of_queues_is_offered_where_asked_for(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """By itself not: QEMU would pass it on to the guest, and never tell of a reset."""
    for asked in (False, True):
        guest = vhost_user_guest(
            server.add(Memory(SIZE), ring_reset=asked), features=DEFAULT_FEATURES | F_RING_RESET
        )
        assert bool(guest.features & F_RING_RESET) is asked
