"""
A back-end that dies and comes back; the order of messages is QEMU's.

Source: traced from QEMU 10.2 with ``reconnect-ms``.
"""

import os
import struct
from pathlib import Path

import pytest
from guest_peers.qsd import SIZE, noise, storage_daemon
from guest_peers.scripted import Scripted, listening, offers

from vhostblk.guest import (
    DEFAULT_FEATURES,
    DeadlineError,
    DisconnectedError,
    Guest,
    GuestError,
    Inflight,
    Request,
)
from vhostblk.guest.packed import wire_base
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import Request as Message

QEMU = 0x1B22B
OFFERED = offers(DEFAULT_FEATURES | vr.F_RING_PACKED, QEMU)
RECONNECT = [1, 15, 16, 17, 36, 21, 3, 1, 13, 14, 13, 14]
START = [2, 40, 39, 32, 13, 13, 2, 40, 37, 8, 10, 9, 12, 8, 10, 9, 12, 18, 18, 40, 39]


def bases(backend: Scripted) -> list[int]:
    """Return what SET_VRING_BASE said, ring by ring."""
    return [
        struct.unpack("=II", m.payload)[1]
        for m in backend.seen
        if m.request == Message.SET_VRING_BASE
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_the_order_is_qemus(tmp_path: Path, packed: bool) -> None:  # noqa: FBT001
    """No GET_INFLIGHT_FD and no GET_CONFIG; the region before memory; memory is sent again."""
    with (
        listening(tmp_path / "s", OFFERED) as seen,
        Guest.connect(tmp_path / "s", queues=2, packed=packed) as guest,
    ):
        queue = guest.queues[1]
        queue.memory.store_u16(queue.ring.addresses.used + 2, 0 if packed else 5)
        region = guest.inflight
        guest.frontend.close()
        guest.reconnect()
        guest.frontend.get_status()
        assert guest.inflight is region
    assert [m.request for m in seen[1].seen][:-1] == [*RECONNECT, *START]
    start = wire_base(0)
    assert bases(seen[0]) == ([start, start] if packed else [0, 0])
    assert bases(seen[1]) == ([start, start] if packed else [0, 5])


def test_what_was_known_last_is_the_base_of_a_packed_ring(tmp_path: Path) -> None:
    """After a stop QEMU knows where a packed ring stood; it cannot see how far it went since."""
    with (
        listening(tmp_path / "s", OFFERED) as seen,
        Guest.connect(tmp_path / "s", packed=True) as guest,
    ):
        guest.stop()
        guest.start()
        guest.frontend.close()
        guest.reconnect()
        guest.frontend.get_status()
    assert bases(seen[1]) == [7]


def test_eventfds_are_new(tmp_path: Path) -> None:
    """A kick that nobody took is not in the eventfd that the next back-end gets."""
    with listening(tmp_path / "s", OFFERED), Guest.connect(tmp_path / "s") as guest:
        guest.submit(Request.read(0, 512))
        guest.frontend.close()
        guest.reconnect()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(guest.queues[0].kick)


def test_requests_stay_in_flight_until_it_is_back(tmp_path: Path) -> None:
    """Against qemu-storage-daemon, killed: what was submitted meanwhile is done by the next one."""
    with storage_daemon(tmp_path, SIZE) as daemon:
        guest = Guest.connect(daemon.path, queues=2, timeout=5)
        guest.write(0, noise(4096))
        daemon.process.kill()
        daemon.process.wait()
        writes = [Request.write(8 * i, noise(4096, i)) for i in range(8)]
        tickets = [guest.submit(write, queue=i % 2) for i, write in enumerate(writes)]
        with pytest.raises(DisconnectedError):
            guest.wait(tickets[0])
    with guest, storage_daemon(tmp_path, SIZE) as daemon:
        guest.reconnect()
        for queue in guest.queues:
            queue.notify()  # the daemon does not look at a ring that is not kicked
        assert [guest.wait(ticket).status for ticket in tickets] == [0] * 8
        assert daemon.image.read_bytes()[: 8 * 4096] == b"".join(noise(4096, i) for i in range(8))


def test_it_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    """A back-end that hangs up at once, or that is not there, is tried again until time is up."""
    with listening(tmp_path / "s", OFFERED), Guest.connect(tmp_path / "s") as guest:
        guest.frontend.close()
        with pytest.raises(DeadlineError, match="the back-end to come back at"):
            guest.reconnect(tmp_path / "elsewhere", timeout=0.05)


def test_a_back_end_that_lost_a_feature_is_refused(tmp_path: Path) -> None:
    """The driver has acknowledged it and cannot be asked again."""
    less = offers(DEFAULT_FEATURES & ~vr.F_EVENT_IDX, QEMU)
    with (
        listening(tmp_path / "s", OFFERED),
        listening(tmp_path / "less", less),
        Guest.connect(tmp_path / "s") as guest,
    ):
        guest.frontend.close()
        with pytest.raises(GuestError, match="feature bits 0x20000000 any more"):
            guest.reconnect(tmp_path / "less")


def test_a_region_of_another_maker_is_handed_over(tmp_path: Path) -> None:
    """A region that is there already is not asked for."""
    made = Inflight.make("yc", queues=1, queue_size=256)
    with (
        listening(tmp_path / "s", OFFERED) as seen,
        Guest.connect(tmp_path / "s", start=False) as guest,
    ):
        guest.keep_inflight(made)
        guest.start()
        guest.frontend.get_status()
    numbers = [m.request for m in seen[0].seen]
    assert Message.GET_INFLIGHT_FD not in numbers
    assert seen[0].seen[numbers.index(Message.SET_INFLIGHT_FD)].payload == made.pack()


def test_the_region_goes_with_a_reset(tmp_path: Path) -> None:
    """It lives over a stop; after a reset the back-end makes another one."""
    with listening(tmp_path / "s", OFFERED) as seen, Guest.connect(tmp_path / "s") as guest:
        guest.stop()
        guest.start()
        guest.reboot()
        guest.frontend.get_status()
    numbers = [m.request for m in seen[0].seen]
    wanted = {Message.GET_INFLIGHT_FD, Message.SET_INFLIGHT_FD}
    assert [n for n in numbers if n in wanted] == [31, 32, 32, 31, 32]


def test_without_the_feature_there_is_no_region(tmp_path: Path) -> None:
    """INFLIGHT_SHMFD decides."""
    answers = offers(DEFAULT_FEATURES, QEMU & ~(1 << 12))
    with listening(tmp_path / "s", answers) as seen, Guest.connect(tmp_path / "s") as guest:
        guest.frontend.get_status()
        assert guest.inflight is None
    assert not {31, 32} & {m.request for m in seen[0].seen}
