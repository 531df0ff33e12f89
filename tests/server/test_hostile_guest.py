from collections.abc import Callable

import pytest
from server_kit.serving import Serving, until

from vhostblk.disk.memory import Memory
from vhostblk.guest.guest import Guest
from vhostblk.guest.hostile import (
    INDIRECT_CASES,
    REQUEST_CASES,
    RING_CASES,
    Case,
    Outcome,
    attempt,
    data,
    flicker,
    header,
    status,
)
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
CASES = (*RING_CASES, *INDIRECT_CASES, *REQUEST_CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_driver_gets_what_was_decided(
    case: Case, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Each trap gets the outcome of the table; other queues serve on, and so does this one restarted.

    Source: ARCHITECTURE.md, "What a bad guest gets, decided once".
    """
    guest = vhost_user_guest(server.add(Memory(1 << 20), num_queues=2), queues=2)
    assert attempt(guest.queues[0], case) is case.expected
    guest.write(0, b"other queue".ljust(512), queue=1)
    if case.expected is Outcome.BROKEN:
        assert until(lambda: "queue 0 is broken" in caplog.text)
        assert caplog.text.count("is broken") == 1
        guest.reboot()
    assert guest.read(0, 512, queue=0) == b"other queue".ljust(512)


def test_a_header_that_changes_while_it_is_read(server: Serving, vhost_user_guest: Connect) -> None:
    """A request type that flickers between IN and an unknown one gets the answer to either."""
    guest = vhost_user_guest(server.add(Memory(1 << 20)))
    queue = guest.queues[0]
    spot, buffer, last = header(queue), data(queue), status(queue)
    with flicker(guest.memory, spot.gpa, b"\xff\xff\0\0", b"\0\0\0\0"):
        for _ in range(100):
            queue.wait([queue.submit([spot, buffer, last])], 5)
            assert guest.memory.read(last.gpa, 1)[0] in {Status.OK, Status.UNSUPP}
    assert guest.read(0, 512) == bytes(512)
