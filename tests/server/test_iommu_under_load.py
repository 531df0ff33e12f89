"""
The IOTLB suite: messages nobody waits for, in the middle of load, on either data plane.

Source: CONFIDENTIAL.md, 6.3 and 3.4 to 3.6.
"""

import random
import threading

import pytest
from server_kit.disks import Slow
from server_kit.serving import Serving, until
from server_kit.translated import (
    BLOCK,
    PAGE,
    SECTORS,
    SIZE,
    attach,
    blocks,
    is_ring,
    ring,
    table,
    write_all,
)

from vhostblk.guest import (
    Framing,
    Guest,
    Request,
    wire,
)
from vhostblk.guest.errors import NackError
from vhostblk.guest.iommu import Flush
from vhostblk.memory.iotlb import Iotlb
from vhostblk.spec.vhost_user import IotlbType

CAP = 2048
"""Translations the server keeps."""


@pytest.mark.slow
@pytest.mark.parametrize("flush", ["page", "global"])
def test_update_storm(server: Serving, flush: Flush) -> None:
    """Thousands of updates, more than are kept, in the middle of load: the bytes are right."""
    with attach(server, flush) as guest:
        data = blocks(8)
        write_all(guest, data)
        iommu, sent = table(guest), 0
        while sent < CAP + 500:
            tickets = [guest.submit(Request.read(SECTORS * i, BLOCK)) for i in range(len(data))]
            iommu.flood(850, first=sent)
            sent += 850
            assert [guest.wait(ticket).data for ticket in tickets] == data
        assert iommu.refused == 0


@pytest.mark.parametrize("which", range(7))
def test_bad_updates_in_the_middle_of_load(server: Serving, which: int) -> None:
    """
    What is no translation is refused, and what was known stays as it was.

    Source: CONFIDENTIAL.md, 3.5: a size, no wrap, one region all of it, rights 1 to 3.
    """
    with attach(server) as guest:
        data = blocks(3)
        write_all(guest, data)
        place = guest.memory.mappings[0]
        bad = [
            (PAGE, 0, place.uva, 3),
            ((1 << 64) - PAGE, PAGE, place.uva, 3),
            ((1 << 64) - PAGE, 2 * PAGE, place.uva, 3),
            (PAGE, PAGE, place.uva - 1, 3),
            (PAGE, 2 * PAGE, place.uva + place.region.size - PAGE, 3),
            (PAGE, PAGE, place.uva, 0),
            (PAGE, PAGE, place.uva, 4),
        ]
        tickets = [guest.submit(Request.read(SECTORS * i, BLOCK)) for i in range(3)]
        with pytest.raises(NackError):
            guest.frontend.iotlb(wire.Iotlb(*bad[which], IotlbType.UPDATE))
        assert [guest.wait(ticket).data for ticket in tickets] == data


def test_more_is_needed_than_is_kept(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Two queues with a chain each need more translations than are kept: both are served.

    Their pieces lie upwards in memory and downwards behind the IOMMU, so that none continues
    another.
    """
    monkeypatch.setattr(Iotlb.__init__, "__defaults__", (32, 1 << 10))
    with attach(server, queues=2) as guest:
        data = random.Random(3).randbytes(40 * PAGE)
        cut = Framing(readable=(16, *(PAGE,) * 40), writable=(PAGE,) * 40, align=PAGE)
        guest.write(0, data, framing=cut)
        request = Request.read(0, 40 * PAGE)
        tickets = [guest.submit(request, queue=i, framing=cut) for i in range(2)]
        assert [guest.wait(ticket).data for ticket in tickets] == [data, data]
        assert table(guest).refused == 0


@pytest.mark.parametrize("part", ["desc", "avail", "used"])
def test_invalidated_ring_in_the_middle_of_load(server: Serving, part: str) -> None:
    """
    A page of the ring goes again and again while requests run: none is lost, none done twice.

    The queue stands until the page is told anew, which a late answer makes long enough to see.
    """
    with attach(server) as guest:
        data = blocks(6)
        write_all(guest, data)
        iommu = table(guest)
        iommu.delay = 0.002
        iommu.answers = lambda one: "late" if is_ring(one) else "prompt"
        before = iommu.misses
        for turn in range(3):
            tickets = [guest.submit(Request.read(SECTORS * i, BLOCK)) for i in range(turn)]
            iommu.invalidate(getattr(ring(guest), part), PAGE)
            tickets += [
                guest.submit(Request.read(SECTORS * i, BLOCK)) for i in range(turn, len(data))
            ]
            assert [guest.wait(ticket).data for ticket in tickets] == data
        assert iommu.misses > before
        assert guest.queues[0].split.used_idx() == len(data) * 4


def test_everything_is_invalidated_in_the_middle_of_load(server: Serving) -> None:
    """QEMU's two halves of a flush, the second of which ends at 2 to the 64, hit rings as well."""
    with attach(server, queues=2) as guest:
        data = blocks(4)
        write_all(guest, data)
        for _ in range(3):
            tickets = [
                guest.submit(Request.read(SECTORS * i, BLOCK), queue=i % 2)
                for i in range(len(data))
            ]
            table(guest).invalidate(0, 0xFEE0_0000)
            table(guest).invalidate(0xFEF0_0000, (1 << 64) - 0xFEF0_0000)
            assert [guest.wait(ticket).data for ticket in tickets] == data


def test_invalidation_waits_for_the_disk(server: Serving) -> None:
    """A buffer unmapped under a request is not forgotten before the disk is done with it."""
    slow = Slow(SIZE)
    path = server.add(slow)
    with Guest.connect(path, iommu="page") as guest:
        guest.write(0, b"x" * BLOCK)
        slow.set(free=False)
        ticket = guest.submit(Request.read(0, BLOCK))
        assert until(lambda: slow.waiting == 1)
        data = ticket.shown[1].gpa // PAGE * PAGE
        later = threading.Timer(0.05, lambda: slow.set(free=True))
        later.start()
        table(guest).invalidate(data, PAGE)
        assert slow.waiting == 0
        later.join()
        assert guest.wait(ticket).data == b"x" * BLOCK
