"""
A front-end that goes in the middle of its start, at and inside of every message.

The start is QEMU's, as the fake guest has it; afterwards the next one finds everything right.
"""

import contextlib
from collections.abc import Callable

import pytest
from server_kit.cutting import CUTS, cut_frontend
from server_kit.left import fake_guests, open_fds, threads
from server_kit.serving import Serving, until

from vhostblk.disk.memory import Memory
from vhostblk.guest import DisconnectedError, Guest, Ledger
from vhostblk.guest.negotiate import Wanted
from vhostblk.spec.virtio_ring import F_RING_PACKED

Connect = Callable[..., Guest]
SIZE = 1 << 20
CONNECT = [1, 15, 16, 17, 36, 21, 3, 1, 13, 14, 13, 14, 24]
START = [2, 40, 39, 31, 32, 13, 13, 2, 40, 37, 8, 10, 9, 12, 8, 10, 9, 12, 18, 18, 40, 39]
RECONNECT = [*CONNECT[:-1], *(n for n in START if n != 31)]


def left() -> tuple[int, int, int]:
    return fake_guests(), open_fds(), threads()


@pytest.mark.parametrize("cut", CUTS)
def test_a_start_that_ends_anywhere(server: Serving, cut: str) -> None:
    """No descriptor, mapping or thread is left, and whoever comes next is served."""
    path = server.add(Memory(SIZE), num_queues=2)
    with Guest.connect(path, queues=2) as guest:
        guest.write(0, b"x" * 4096)
    assert until(lambda: server.devices[0].attached is None)
    before = left()
    for message in range(len(CONNECT) + len(START)):
        sent: list[int] = []
        frontend = cut_frontend(path, message, cut, sent)
        with contextlib.suppress(DisconnectedError), Guest(frontend, Wanted(queues=2)) as guest:
            guest.start()
        assert sent == [*CONNECT, *START][: message + 1]
    with Guest.connect(path, queues=2) as guest:
        for queue in range(2):
            assert guest.read(0, 4096, queue=queue) == b"x" * 4096
    assert until(lambda: all(now <= then for now, then in zip(left(), before, strict=True)))


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_reconnect_that_ends_anywhere(
    server: Serving,
    cut: str,
    packed: bool,  # noqa: FBT001
) -> None:
    """A guest that is under load all the time, and loses nothing."""
    path = server.add(Memory(SIZE), num_queues=2)
    if packed and not server.devices[0].features & F_RING_PACKED:
        pytest.skip("needs an engine that offers packed rings, and this one does not")
    with Guest.connect(path, queues=2, queue_size=64, packed=packed) as guest:
        ledger = Ledger(guest, blocks=64, seed=CUTS.index(cut))
        for message in range(len(RECONNECT)):
            sent: list[int] = []
            ledger.fill(8)
            guest.frontend.close()
            with pytest.raises(DisconnectedError):
                guest.session.resume(
                    guest.session.open_link(cut_frontend(path, message, cut, sent))
                )
            assert sent == RECONNECT[: message + 1]
        guest.reconnect()
        ledger.verify()
