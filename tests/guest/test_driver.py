"""Requests that find no bounce slots; the rogue back-end is a good one that answers at once."""

from collections.abc import Iterator

import pytest
from guest_peers.rogue import CONTENT, Piece, View, rogue

from vhostblk.guest import FrontEnd, Guest, QueueOptions, Request
from vhostblk.guest.bounce import Bounced, SwiotlbOptions
from vhostblk.guest.confidential import Confidential
from vhostblk.guest.dma import BounceError
from vhostblk.guest.errors import RingError
from vhostblk.guest.swiotlb import PoolFullError

TINY = Confidential(kind="snp", swiotlb=SwiotlbOptions(nslabs=128))


def nothing(view: View, chain: list[Piece]) -> None:
    """Do nothing besides."""


@pytest.fixture
def guest() -> Iterator[Guest]:
    with (
        rogue(nothing) as backend,
        Guest(FrontEnd.over(backend.front), None, QueueOptions(size=8), confidential=TINY) as made,
    ):
        made.start()
        yield made


def used(guest: Guest) -> int:
    assert isinstance(guest.dma, Bounced)
    return guest.dma.used


def test_a_request_is_held_back_until_slots_are_free(guest: Guest) -> None:
    """What is in flight is taken apart to make room, and its results are not lost."""
    tickets = [guest.submit(Request.read(0, 100_000)) for _ in range(6)]
    assert guest.driver.requeues >= 2
    for ticket in tickets:
        assert guest.wait(ticket).data == bytes([CONTENT]) * 100_000
    assert used(guest) == 0


def test_a_request_that_never_fits_is_refused(guest: Guest) -> None:
    """With nothing in flight there is nothing to wait for; everything is given back."""
    with pytest.raises(PoolFullError):
        guest.submit(Request.read(0, 300_000))
    assert used(guest) == 0
    assert guest.driver.requeues == 0
    assert guest.read(0, 512) == bytes([CONTENT]) * 512


def test_a_full_ring_takes_no_slots(guest: Guest) -> None:
    """A chain the ring has no room for leaves nothing mapped."""
    guest.queues[0].split.take(8)
    with pytest.raises(RingError):
        guest.submit(Request.read(0, 512))
    assert used(guest) == 0


def test_waiting_twice_unmaps_once(guest: Guest) -> None:
    """The result of a request can be had again; its slots were given back."""
    ticket = guest.submit(Request.read(0, 512))
    assert guest.wait(ticket) == guest.wait(ticket)
    assert used(guest) == 0


def test_abandoned_requests_give_slots_back(guest: Guest) -> None:
    """A reboot forgets requests in flight; the next ones find the pool free."""
    for _ in range(3):
        guest.submit(Request.read(0, 512))
    guest.driver.abandon()
    assert used(guest) == len(guest.queues[0]._tickets), "the tables, which are the queue's"


def test_everything_is_taken_back_before_the_complaint() -> None:
    """A device that wrote where it must not leaves no slot in use."""

    def scribble(view: View, chain: list[Piece]) -> None:
        view.write(chain[0].gpa, b"\xff")

    with (
        rogue(scribble) as backend,
        Guest(FrontEnd.over(backend.front), confidential=TINY) as guest,
    ):
        guest.start()
        with pytest.raises(BounceError):
            guest.read(0, 512)
        assert used(guest) == 0
