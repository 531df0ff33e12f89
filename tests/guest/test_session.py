"""
The order of messages is QEMU's, as recorded from QEMU 10.

Without STATUS, REPLY_ACK and memory slots it is that of older front-ends.
"""

import pytest
from guest_peers.scripted import Scripted, offers, scripted, u64

from vhostblk.guest import (
    DEFAULT_FEATURES,
    FrontEnd,
    Guest,
    GuestError,
    GuestMemory,
    NackError,
    QueueOptions,
    Region,
    slots_layout,
)
from vhostblk.guest import (
    Request as BlkRequest,
)
from vhostblk.guest.layout import MIB, PAGE
from vhostblk.guest.negotiate import Wanted
from vhostblk.spec import vhost_user as vu
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature, Request

QEMU = 0x1B22B
"""What QEMU 10 agrees on with a back-end that offers everything."""
OFFERED = offers(DEFAULT_FEATURES | vr.F_RING_PACKED, QEMU)
MINIMAL = offers(DEFAULT_FEATURES, int(ProtocolFeature.CONFIG | ProtocolFeature.MQ))

# Message numbers as traced from QEMU 10.2 with two queues.
CONNECT = [1, 15, 16, 17, 36, 21, 3, 1, 13, 14, 13, 14, 24]
BEGIN = [2, 40, 39, 31, 32, 13, 13, 2, 40]
GO_ON = [2, 40, 39, 32, 13, 13, 2, 40]
ADD_MEM_REG = [37]
RING = [8, 10, 9, 12]
END = [18, 18, 40, 39]
STOP = [18, 18, 11, 11, 39]
RESET = [34, 34, 34]
ACKNOWLEDGED = {21, 13, 14, 37, 12, 18}


def guest(backend: Scripted, memory: GuestMemory | None = None, **wanted: int) -> Guest:
    asked = Wanted(queues=2, **wanted)  # type: ignore[arg-type]  # the integer ones
    return Guest(FrontEnd.over(backend.front), asked, None, memory)


def test_connect_and_start_in_qemus_order() -> None:
    """SET_OWNER comes late, CALL before SET_FEATURES, memory before rings, ENABLE last."""
    with scripted(OFFERED) as backend, guest(backend) as made:
        made.start()
        made.frontend.get_status()
    numbers = [m.request for m in backend.seen]
    assert numbers[:-1] == [*CONNECT, *BEGIN, *ADD_MEM_REG, *RING, *RING, *END]
    assert {m.request for m in backend.seen if m.need_reply} == ACKNOWLEDGED
    assert made.features == DEFAULT_FEATURES, "never what the driver does not know"


def test_stop_and_start_again() -> None:
    """Stopping asks for bases; starting again sends them and no region."""
    with scripted(OFFERED) as backend, guest(backend) as made:
        made.start()
        assert made.stop() == {0: 7, 1: 7}
        made.frontend.get_status()
        before = len(backend.seen)
        made.start()
        made.frontend.get_status()
    numbers = [m.request for m in backend.seen]
    assert numbers[before - 1 - len(STOP) : before - 1] == STOP
    assert numbers[before:-1] == [*GO_ON, *RING, *RING, *END]
    bases = [m.payload for m in backend.seen if m.request == Request.SET_VRING_BASE]
    assert bases == [b"\0\0\0\0\0\0\0\0", b"\1\0\0\0\0\0\0\0", u64(7 << 32), u64(7 << 32 | 1)]


def test_reboot_resets_between() -> None:
    """RESET_DEVICE follows the stop, and the next rings begin where they are told to."""
    with scripted(OFFERED) as backend, guest(backend) as made:
        made.start()
        made.frontend.get_status()
        before = len(backend.seen)
        made.reboot(features=1 << 32, queue_options=QueueOptions(size=8, base=3))
        made.frontend.get_status()
    numbers = [m.request for m in backend.seen]
    assert numbers[before:-1] == [*STOP, *RESET, *BEGIN, *RING, *RING, *END]
    assert made.features == 1 << 32 | 1 << 30, "bit 30 is the front-end's"


def test_one_queue_is_reset_alone() -> None:
    """It is stopped, and set up anew on a ring of another size; its requests are forgotten."""
    with scripted(OFFERED) as backend, guest(backend) as made:
        made.start()
        made.frontend.get_status()
        before = len(backend.seen)
        stays, goes = made.submit(BlkRequest.flush()), made.submit(BlkRequest.flush(), queue=1)
        made.reset_queue(1, QueueOptions(size=8, base=3))
        made.frontend.get_status()
        assert (stays.owned != [], goes.owned) == (True, [])
        assert made.queues[1].ring.free_descriptors == 8
        assert made.stop() == {0: 7, 1: 7}
    numbers = [m.request for m in backend.seen[before:]]
    assert numbers == [11, *RING, 40, *STOP]
    assert [m.payload[0] for m in backend.seen[before : before + 4]] == [1, 1, 1, 1]


def test_minimal_protocol() -> None:
    """With CONFIG and MQ only: no acks, a whole memory table, GET_FEATURES after each ENABLE."""
    with scripted(MINIMAL) as backend, guest(backend) as made:
        made.start()
        made.frontend.get_features()
    # As traced from QEMU with such a back-end.
    connect = [1, 15, 16, 17, 3, 1, 13, 14, 13, 14, 24]
    start = [2, 13, 13, 2, 5, *RING, *RING, 18, 1, 18, 1]
    assert [m.request for m in backend.seen] == [*connect, *start, 1]
    assert not any(m.need_reply for m in backend.seen)


def test_without_bit_30_nothing_is_negotiated_or_enabled() -> None:
    """
    A session without protocol features has no messages that depend on them.

    Spec: vhost-user, "Ring states".
    """
    features = DEFAULT_FEATURES & ~vu.VHOST_USER_F_PROTOCOL_FEATURES
    with scripted(OFFERED) as backend:
        wanted = Wanted(queues=1, features=features)
        with Guest(FrontEnd.over(backend.front), wanted) as made:
            made.start()
            made.frontend.get_features()
        with pytest.raises(GuestError, match="without CONFIG"):
            _ = made.capacity
    assert [m.request for m in backend.seen] == [1, 3, 1, 13, 14, 2, 13, 2, 5, *RING, 1]


def test_queues_without_mq_are_one() -> None:
    """GET_QUEUE_NUM is not asked without MQ; there is one queue then."""
    with (
        scripted(offers(DEFAULT_FEATURES, int(ProtocolFeature.CONFIG))) as backend,
        pytest.raises(GuestError, match="serves 1 queues, not 2"),
    ):
        guest(backend)


def test_regions_are_sent_as_differences() -> None:
    """With slots only what is new is added and what goes is removed."""
    with (
        GuestMemory(slots_layout(2, MIB)) as memory,
        scripted(OFFERED) as backend,
        guest(backend, memory) as made,
    ):
        made.start()
        made.frontend.get_status()
        before = len(backend.seen)
        made.add_region(Region(0, PAGE))
        made.remove_region(0)
        with pytest.raises(GuestError, match="no region begins at GPA 0x0"):
            made.remove_region(0)
        made.frontend.get_status()
    assert backend.names.count("ADD_MEM_REG!") == 3
    assert backend.names[before:] == ["ADD_MEM_REG!", "REM_MEM_REG!", "GET_STATUS"]


def test_regions_are_sent_as_tables() -> None:
    """Without slots the whole table is sent again."""
    with (
        GuestMemory(slots_layout(2, MIB)) as memory,
        scripted(MINIMAL) as backend,
        guest(backend, memory) as made,
    ):
        made.start()
        made.add_region(Region(0, PAGE))
        made.remove_region(0)
        made.frontend.get_features()
    tables = [m for m in backend.seen if m.request == Request.SET_MEM_TABLE]
    assert [table.payload[0] for table in tables] == [2, 3, 2]
    assert [len(table.fds) for table in tables] == [2, 3, 2]


def test_region_in_use_is_not_removed() -> None:
    """Nothing is sent for a region from which something is allocated."""
    with (
        GuestMemory(slots_layout(2, MIB)) as memory,
        scripted(OFFERED) as backend,
        guest(backend, memory) as made,
    ):
        made.start()
        with pytest.raises(GuestError, match="still in use"):
            made.remove_region(memory.mappings[0].region.gpa)
        made.frontend.get_status()
    assert "REM_MEM_REG!" not in backend.names


def test_some_queues_are_enabled_and_not_set_up() -> None:
    """A driver that uses one queue of two: QEMU enables both."""
    with scripted(OFFERED) as backend, guest(backend) as made:
        made.start(queues=[1])
        assert made.stop() == {1: 7}
    assert backend.names.count("SET_VRING_NUM") == 1
    assert backend.names.count("SET_VRING_ENABLE!") == 4
    assert backend.names.count("GET_VRING_BASE") == 1


def test_refusal_leaves_nothing_open() -> None:
    """A back-end that refuses while connecting ends in an error, and the socket is closed."""
    with scripted(OFFERED, {Request.SET_VRING_CALL: 5}) as backend:
        with pytest.raises(NackError, match="SET_VRING_CALL"):
            guest(backend)
        assert backend.front.fileno() == -1
