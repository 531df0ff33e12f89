"""Start, stop, reboot, fewer features and death: the fake guest against qemu-storage-daemon."""

from pathlib import Path

import pytest
from guest_peers.qsd import Connect, Daemon, exchange, noise

from vhostblk.guest import (
    DEFAULT_FEATURES,
    DisconnectedError,
    GuestError,
    QueueOptions,
    Request,
)
from vhostblk.spec import vhost_user as vu
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature
from vhostblk.spec.virtio_blk import RequestType

BARE = DEFAULT_FEATURES & ~(vr.F_INDIRECT_DESC | vr.F_EVENT_IDX)


def test_stop_and_start_go_on(connect: Connect, daemon: Daemon) -> None:
    """A device that was stopped goes on at the base it told."""
    guest = connect(queues=2)
    guest.write(0, noise(4096), queue=1)
    assert guest.stop() == {0: 0, 1: 1}
    guest.start()
    exchange(guest, daemon)
    assert guest.stop() == {0: 8, 1: 9}


def test_reboot_with_other_features_and_rings(connect: Connect, daemon: Daemon) -> None:
    """
    The next driver may acknowledge less and have another ring, as firmware and kernel do.

    Spec: virtio 1.3, 3.1.1.
    """
    guest = connect(queues=2, features=BARE & ~vu.VHOST_F_LOG_ALL, queue_size=64)
    exchange(guest, daemon, rounds=4)
    guest.reboot(features=DEFAULT_FEATURES, queue_options=QueueOptions(size=128))
    assert guest.session.ring_features.event_idx
    assert guest.session.indirect
    exchange(guest, daemon, rounds=4)


def test_one_of_several_queues(connect: Connect) -> None:
    """A driver that sets up one queue of four is served."""
    guest = connect(queues=4, start=False)
    guest.start(queues=[2])
    assert guest.read(0, 512, queue=2) == bytes(512)
    assert guest.stop() == {2: 1}


@pytest.mark.parametrize(
    "protocol",
    [
        ProtocolFeature.CONFIG,
        ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK,
        ProtocolFeature.CONFIG | ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ProtocolFeature(0),
    ],
    ids=str,
)
def test_fewer_protocol_features(
    connect: Connect, daemon: Daemon, protocol: ProtocolFeature
) -> None:
    """A front-end that knows less of the protocol is served as well."""
    exchange(connect(protocol_features=protocol), daemon, rounds=4)


def test_without_protocol_features(connect: Connect, daemon: Daemon) -> None:
    """
    Without bit 30 rings are enabled from the start and nothing enables them.

    Spec: vhost-user, "Ring states".
    """
    features = DEFAULT_FEATURES & ~vu.VHOST_USER_F_PROTOCOL_FEATURES
    exchange(connect(features=features), daemon, rounds=4)


def test_too_many_queues_are_an_error(connect: Connect) -> None:
    """Asking for more queues than are served says how many are."""
    with pytest.raises(GuestError, match="serves 4 queues, not 5"):
        connect(queues=5)


def test_honour_notify_loses_nothing(connect: Connect, daemon: Daemon) -> None:
    """Kicking only when asked to works on x86, where an eventfd's lock is a fence."""
    guest = connect(queue_size=64)
    guest.reboot(queue_options=QueueOptions(size=64, honour_notify=True))
    exchange(guest, daemon)


def test_calls_are_not_missed(connect: Connect, daemon: Daemon) -> None:
    """Every wait was ended by a call, not by looking at the ring after a while."""
    guest = connect(queues=2)
    exchange(guest, daemon, rounds=32)
    assert [queue.counters.missed_calls for queue in guest.queues] == [0, 0]


def test_connect_again(connect: Connect, daemon: Daemon) -> None:
    """The daemon serves a second guest after the first one hung up."""
    first = connect()
    first.write(0, noise(4096))
    first.close()
    assert connect().read(0, 4096) == noise(4096)
    assert daemon.image.read_bytes()[:4096] == noise(4096)


def test_death_of_the_backend_is_reported_at_once(connect: Connect, daemon: Daemon) -> None:
    """A back-end that dies ends the wait, long before the deadline."""
    guest = connect(timeout=60)
    daemon.process.kill()
    with pytest.raises(DisconnectedError, match="the back-end is gone"):
        guest.run(Request(type=RequestType.IN, in_length=512))


def test_deadline_names_what_was_waited_for(connect: Connect) -> None:
    """A request on a queue that is not enabled times out, and the error says which queue."""
    guest = connect(queues=2, start=False)
    guest.start(queues=[1])
    ticket = guest.submit(Request.read(0, 512), queue=0)
    with pytest.raises(GuestError, match="timed out waiting for 1 chains on queue 0"):
        guest.wait(ticket, timeout=0.05)


def test_many_connections_leave_nothing_open(connect: Connect) -> None:
    """Guests that come and go leave no descriptor behind, with requests in flight or without."""
    before = open_fds()
    for i in range(20):
        guest = connect(queues=2)
        guest.submit(Request.write(0, bytes(4096)), queue=i % 2)
        guest.close()
    assert open_fds() == before


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
