"""Waiting for a device; the tests are the device."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from vhostblk.guest import (
    BrokenQueueError,
    Buffer,
    DeadlineError,
    DisconnectedError,
    GuestMemory,
    Queue,
    QueueOptions,
    Region,
    RingAddresses,
    Ticket,
)
from vhostblk.guest import queue as queue_module
from vhostblk.guest.layout import PAGE


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([Region(0, 16 * PAGE)]) as ram:
        yield ram


@pytest.fixture
def queue(memory: GuestMemory) -> Iterator[Queue]:
    made = Queue.create(0, memory, QueueOptions(size=8))
    yield made
    made.close()


def use(queue: Queue, *tickets: Ticket, length: int = 1) -> None:
    """Use chains as a device does, without a call."""
    idx = queue.split.used_idx()
    for ticket in tickets:
        at = queue.ring.addresses.used + 4 + 8 * (idx % queue.split.size)
        element = ticket.head.to_bytes(4, "little") + length.to_bytes(4, "little")
        queue.memory.write(at, element)
        idx = (idx + 1) & 0xFFFF
    queue.memory.store_u16(queue.ring.addresses.used + 2, idx)


def submit(queue: Queue) -> Ticket:
    return queue.submit([Buffer(0x1000, 16), Buffer(0x2000, 1, writable=True)])


def test_submit_kicks_and_publishes(queue: Queue) -> None:
    """A chain is available and the device was kicked for it."""
    submit(queue)
    assert queue.memory.load_u16(queue.ring.addresses.avail + 2) == 1
    assert os.eventfd_read(queue.kick) == queue.counters.kicks == 1


def test_publish_honours_the_device_only_if_told(memory: GuestMemory) -> None:
    """A device that wants no kicks is kicked all the same, unless the options say otherwise."""
    for honour, kicks in ((False, 1), (True, 0)):
        queue = Queue.create(0, memory, QueueOptions(size=8, honour_notify=honour))
        memory.store_u16(queue.ring.addresses.used, 1)
        submit(queue)
        assert queue.counters.kicks == kicks
        queue.close()


def test_prepared_chains_are_published_together(queue: Queue) -> None:
    """A batch is one index and one kick."""
    tickets = [queue.prepare([Buffer(0x1000, 1)]) for _ in range(3)]
    assert queue.memory.load_u16(queue.ring.addresses.avail + 2) == 0
    queue.publish(*tickets)
    assert queue.memory.load_u16(queue.ring.addresses.avail + 2) == 3
    assert queue.counters.kicks == 1


def test_wait_ends_with_the_call(queue: Queue) -> None:
    """A call wakes the driver, which finds its chain used."""
    ticket = submit(queue)

    def device() -> None:
        use(queue, ticket, length=5)
        os.eventfd_write(queue.call, 1)

    thread = threading.Timer(0.02, device)
    thread.start()
    queue.wait([ticket], timeout=5)
    thread.join()
    assert ticket.used_length == 5
    assert queue.counters.missed_calls == 0


def test_wait_survives_a_missing_call(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that never calls costs time, is found out and is counted."""
    monkeypatch.setattr(queue_module, "RECHECK", 0.02)
    monkeypatch.setattr(queue_module, "GRACE", 0.01)
    ticket = submit(queue)
    thread = threading.Timer(0.01, use, (queue, ticket))
    thread.start()
    queue.wait([ticket], timeout=5)
    thread.join()
    assert queue.counters.missed_calls == 1


def test_wait_is_over_at_the_deadline(queue: Queue) -> None:
    """A chain that is never used ends in an error that names the queue."""
    with pytest.raises(DeadlineError, match="1 chains on queue 0"):
        queue.wait([submit(queue)], timeout=0.01)


def test_wait_reports_a_broken_queue(queue: Queue) -> None:
    """The err eventfd ends the wait."""
    ticket = submit(queue)
    os.eventfd_write(queue.err, 1)
    assert queue.is_broken()
    with pytest.raises(BrokenQueueError, match="gave up queue 0"):
        queue.wait([ticket], timeout=5)
    queue.wait_broken(timeout=1)
    assert not queue.is_broken()


def test_wait_reports_a_dead_backend(queue: Queue) -> None:
    """A closed socket ends the wait; what was used before it closed still counts."""
    ours, theirs = socket.socketpair()
    with ours:
        queue.hangup_fd = ours.fileno()
        first, second = submit(queue), submit(queue)
        use(queue, first)
        theirs.close()
        queue.wait([first], timeout=5)
        with pytest.raises(DisconnectedError, match="the back-end is gone"):
            queue.wait([second], timeout=5)
        with pytest.raises(DisconnectedError):
            queue.wait_broken(timeout=5)


def test_wait_some_returns_what_is_done(queue: Queue) -> None:
    """One of several chains is enough."""
    first, second = submit(queue), submit(queue)
    use(queue, second)
    assert queue.wait_some(timeout=5) == [second]
    assert not first.done
    with pytest.raises(DeadlineError, match="any chain"):
        queue.wait_some(timeout=0.01)


def test_take_calls_counts(queue: Queue) -> None:
    """Several calls arrive as one and are all counted."""
    assert queue.take_calls() == 0
    os.eventfd_write(queue.call, 3)
    assert queue.take_calls() == 3
    assert queue.counters.calls == 3


def test_indirect_table_is_freed(queue: Queue, memory: GuestMemory) -> None:
    """The table of a chain is given back with the chain."""
    ticket = queue.submit([Buffer(0x1000, 16), Buffer(0x2000, 1)], indirect=True)
    assert ticket.table is not None
    use(queue, ticket)
    queue.reap()
    assert memory.reserve(ticket.table, 32) == ticket.table


def test_adopt_follows_a_chain_made_by_hand(queue: Queue) -> None:
    """A head from the ring's own calls can be waited for like any other."""
    ticket = queue.adopt(queue.ring.add([Buffer(0x1000, 1)]))
    queue.publish(ticket)
    use(queue, ticket)
    queue.wait([ticket], timeout=5)
    assert ticket.done


def test_replace_ring_forgets_everything(memory: GuestMemory) -> None:
    """A new ring has nothing in flight, no pending signals, and the old one's memory is free."""
    queue = Queue.create(0, memory, QueueOptions(size=8))
    queue.submit([Buffer(0x1000, 1)], indirect=True)
    os.eventfd_write(queue.err, 1)
    os.eventfd_write(queue.call, 1)
    queue.replace_ring(QueueOptions(size=16, base=9))
    assert (queue.split.size, queue.split.avail_idx, queue.split.in_flight) == (16, 9, ())
    assert not queue.is_broken()
    assert queue.take_calls() == 0
    queue.close()
    assert memory.reserve(4096, 15 * PAGE) == 4096


def test_ring_by_hand_stays_the_callers(memory: GuestMemory) -> None:
    """Addresses that were given are used and never freed."""
    at = RingAddresses(desc=0x4000, avail=0x5000, used=0x6000)
    queue = Queue.create(0, memory, QueueOptions(size=8, addresses=at))
    assert queue.ring.addresses == at
    queue.close()


def test_kick_can_block(memory: GuestMemory) -> None:
    """The kick eventfd is non-blocking as QEMU's, or blocking as others' may be."""
    for nonblocking in (True, False):
        queue = Queue.create(0, memory, QueueOptions(nonblocking_kick=nonblocking))
        assert os.get_blocking(queue.kick) is not nonblocking
        queue.close()
