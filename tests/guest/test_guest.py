"""The facade, against a back-end that answers messages and serves no queue."""

import os

import pytest
from guest_peers.scripted import Scripted, offers, scripted

from vhostblk.guest import (
    DEFAULT_FEATURES,
    BrokenQueueError,
    DeadlineError,
    Framing,
    FrontEnd,
    Guest,
    GuestMemory,
    QueueOptions,
    Region,
    Request,
    RingError,
)
from vhostblk.guest.layout import PAGE
from vhostblk.guest.negotiate import Wanted
from vhostblk.spec import virtio_ring as vr

OFFERED = offers(DEFAULT_FEATURES, 0x1B22B)
BARE = DEFAULT_FEATURES & ~(vr.F_INDIRECT_DESC | vr.F_EVENT_IDX)
WHOLE = 4096, 63 * PAGE
"""All RAM of ``small_memory`` that can be allocated."""


def small_memory() -> GuestMemory:
    return GuestMemory([Region(0, 64 * PAGE)])


def guest(backend: Scripted, memory: GuestMemory, features: int = BARE, size: int = 4) -> Guest:
    made = Guest(
        FrontEnd.over(backend.front), Wanted(features=features), QueueOptions(size=size), memory
    )
    made.start()
    return made


def test_close_gives_all_memory_back() -> None:
    """A guest that is closed with requests in flight leaves the caller's memory empty."""
    with small_memory() as memory, scripted(OFFERED) as backend:
        made = guest(backend, memory, DEFAULT_FEATURES)
        made.submit(Request.read(0, 4096))
        made.close()
        made.close()
        assert memory.reserve(*WHOLE) == 4096


def test_reboot_gives_memory_of_lost_requests_back() -> None:
    """Requests in flight are forgotten with their ring."""
    with small_memory() as memory, scripted(OFFERED) as backend:
        made = guest(backend, memory, DEFAULT_FEATURES)
        made.submit(Request.read(0, 4096))
        made.reboot()
        assert made.queues[0].ring.in_flight == ()
        made.close()
        assert memory.reserve(*WHOLE) == 4096


def test_submit_on_a_full_queue_takes_nothing() -> None:
    """A request without room on the ring is an error, and can be tried again."""
    with small_memory() as memory, scripted(OFFERED) as backend:
        made = guest(backend, memory)
        made.submit(Request.read(0, 512))
        with pytest.raises(RingError, match="chain of 3 descriptors, but 1 of 4 are free"):
            made.submit(Request.read(0, 512))
        made.close()
        assert memory.reserve(*WHOLE) == 4096


def test_submit_uses_few_descriptors_on_a_tiny_ring() -> None:
    """Without indirect tables a ring of two carries a request in two descriptors."""
    with (
        small_memory() as memory,
        scripted(OFFERED) as backend,
        guest(backend, memory, size=2) as made,
    ):
        assert len(made.submit(Request.read(0, 512)).buffers) == 2


@pytest.mark.parametrize(
    ("features", "indirect", "free"),
    [
        (DEFAULT_FEATURES, None, 15),
        (DEFAULT_FEATURES, False, 13),
        (BARE, None, 13),
        (BARE, True, 15),
    ],
)
def test_submit_goes_indirect_if_negotiated(
    features: int,
    *,
    indirect: bool | None,
    free: int,
) -> None:
    """Indirect tables are used if they were negotiated, or if a test insists."""
    with (
        small_memory() as memory,
        scripted(OFFERED) as backend,
        guest(backend, memory, features, size=16) as made,
    ):
        made.submit(Request.read(0, 512), framing=Framing(indirect=indirect))
        assert made.queues[0].ring.free_descriptors == free


def test_timeout_of_the_connection_is_that_of_requests() -> None:
    """A request nobody serves ends at the guest's timeout; the ticket stays good."""
    with (
        small_memory() as memory,
        scripted(OFFERED) as backend,
        guest(backend, memory, size=8) as made,
    ):
        made.timeout = 0.01
        with pytest.raises(DeadlineError):
            made.read(0, 512)
        ticket = made.submit(Request.flush(), framing=Framing.compact())
        with pytest.raises(DeadlineError):
            made.wait(ticket, timeout=0.01)
        assert not ticket.done


def test_broken_queue_is_told_before_the_timeout() -> None:
    """The err eventfd given to the back-end ends a request."""
    with small_memory() as memory, scripted(OFFERED) as backend, guest(backend, memory) as made:
        ticket = made.submit(Request.read(0, 512))
        os.eventfd_write(made.queues[0].err, 1)
        with pytest.raises(BrokenQueueError):
            made.wait(ticket)


def test_capacity_is_that_of_the_connect() -> None:
    """The capacity is the first field of the config space, in sectors."""
    with small_memory() as memory, scripted(OFFERED) as backend, guest(backend, memory) as made:
        assert made.capacity == 0, "the scripted back-end echoes zeros"
