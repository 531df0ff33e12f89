"""
What an invalidation waits for: requests in flight on the memory that goes, and no others.

Source: CONFIDENTIAL.md, 3.5.
"""

import threading
import time
from typing import Self

import pytest
from server_kit.disks import Slow
from server_kit.serving import Serving, until
from server_kit.translated import BLOCK, PAGE, SECTORS, SIZE, blocks, ring, table, write_all

from vhostblk.guest import Guest, Request
from vhostblk.guest.blk import BlkTicket
from vhostblk.memory.iotlb import Iotlb
from vhostblk.server import parting

SOON = 0.5
"""Seconds: half of what an invalidation waits at most."""


class Held:
    """A guest behind an IOMMU, with two blocks on a disk that holds every read until it is told."""

    def __init__(self, server: Serving) -> None:
        self._slow = Slow(SIZE)
        self._server = server
        self.guest = Guest.connect(server.add(self._slow), iommu="page")
        self.data = blocks(2)
        write_all(self.guest, self.data)
        self._slow.set(free=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.guest.close()

    def read(self, number: int) -> BlkTicket:
        """Have block *number* read, and see it at the disk."""
        before = self._slow.waiting
        ticket = self.guest.submit(Request.read(SECTORS * number, BLOCK))
        assert until(lambda: self._slow.waiting == before + 1)
        return ticket

    def invalidate(self, iova: int) -> float:
        """Take a page back; return how many seconds that took."""
        before = time.monotonic()
        table(self.guest).invalidate(iova, PAGE)
        return time.monotonic() - before

    def release(self) -> None:
        self._slow.set(free=True)

    @property
    def waiting(self) -> int:
        """Reads that the disk holds."""
        return self._slow.waiting

    def late(self) -> int:
        """Return how often memory was still in use."""
        attached = self._server.devices[0].attached
        assert attached is not None
        return attached.iommu.counters.late


def buffer(ticket: BlkTicket) -> int:
    """Return the first page of a read's data, as the driver names it."""
    return ticket.shown[1].gpa // PAGE * PAGE


def spare(guest: Guest) -> int:
    """Have the device know a page that nothing uses; return its IOVA."""
    iova = table(guest).map(guest.memory.allocate(PAGE, align=PAGE), PAGE, 3)
    table(guest).tell(iova)
    return iova


@pytest.mark.parametrize("known", [True, False])
def test_request_elsewhere_is_not_waited_for(server: Serving, *, known: bool) -> None:
    """A page that nothing in flight uses goes at once, and so does one that was never known."""
    with Held(server) as held:
        ticket = held.read(0)
        iova = spare(held.guest) if known else PAGE
        assert held.invalidate(iova) < SOON
        assert held.waiting == 1
        held.release()
        assert held.guest.wait(ticket).data == held.data[0]
        assert held.late() == 0


@pytest.mark.parametrize("part", ["first", "last", "status", "used"])
def test_request_there_is_waited_for(server: Serving, part: str) -> None:
    """Its data to the last page, its status byte, and what tells the driver that it is done."""
    with Held(server) as held:
        ticket = held.read(0)
        where = {
            "first": buffer(ticket),
            "last": buffer(ticket) + BLOCK - PAGE,
            "status": ticket.shown[2].gpa // PAGE * PAGE,
            "used": ring(held.guest).used,
        }
        done = held.guest.queues[0].split.used_idx()
        later = threading.Timer(0.05, held.release)
        later.start()
        assert 0.04 < held.invalidate(where[part]) < SOON
        later.join()
        assert held.waiting == 0
        if part == "used":
            assert held.guest.queues[0].split.used_idx() == done + 1
        assert held.guest.wait(ticket).data == held.data[0]
        assert held.late() == 0


@pytest.mark.parametrize("part", ["data", "used"])
def test_wait_is_bounded(server: Serving, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """It is counted, and the request ends as it would have: nothing fails for it."""
    monkeypatch.setattr(parting, "INVALIDATE_SECONDS", 0.05)
    with Held(server) as held:
        ticket = held.read(0)
        iova = buffer(ticket) if part == "data" else ring(held.guest).used
        assert 0.04 < held.invalidate(iova) < SOON
        assert (held.waiting, held.late()) == (1, 1)
        held.release()
        assert held.guest.wait(ticket).data == held.data[0]
        assert held.guest.read(SECTORS, BLOCK) == held.data[1]


def test_evicted_memory_is_waited_for(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is bounded: of a page that is not known any more nobody knows who uses it."""
    monkeypatch.setattr(Iotlb.__init__, "__defaults__", (4, 1 << 10))
    with Held(server) as held:
        ticket = held.read(0)
        table(held.guest).flood(20, first=0)
        later = threading.Timer(0.05, held.release)
        later.start()
        assert 0.04 < held.invalidate(buffer(ticket)) < SOON
        later.join()
        assert held.waiting == 0
        assert held.guest.wait(ticket).data == held.data[0]
