"""Requests that change nothing."""

import pytest

from vhostblk.guest.blk import Request
from vhostblk.guest.conformance.places import (
    MANY,
    Places,
    framings,
    on_all_rings,
    on_both_formats,
)
from vhostblk.guest.guest import Guest
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec.virtio_blk import SECTOR_SIZE, SERIAL_SIZE, Status


@on_all_rings
def test_every_place_can_be_read(vhostblk_guest: Guest) -> None:
    """
    Blocks from the first to the last are read, twice with the same result.

    Spec: virtio 1.3, 5.2.6.
    """
    places = Places.of(vhostblk_guest)
    for sector in (*places.blocks(8), places.last):
        data = vhostblk_guest.read(sector, places.block)
        assert vhostblk_guest.read(sector, places.block) == data


@on_both_formats
def test_framing_of_a_read_means_nothing(vhostblk_guest: Guest) -> None:
    """
    However header, data and status are cut into descriptors, the same is read.

    Spec: virtio 1.3, 2.7.4.
    """
    request = Request.read(0, Places.of(vhostblk_guest).most)
    expected = vhostblk_guest.run(request)
    for framing in framings(vhostblk_guest, request):
        assert vhostblk_guest.run(request, framing=framing) == expected, framing


@on_all_rings
def test_used_length_of_a_read(vhostblk_guest: Guest) -> None:
    """
    A read that went well wrote its data and the status, and says so.

    Spec: virtio 1.3, 2.7.8.2.
    """
    places = Places.of(vhostblk_guest)
    done = vhostblk_guest.run(Request.read(0, places.block))
    assert (done.status, done.used_length) == (Status.OK, places.block + 1)


@on_both_formats
def test_many_reads_in_flight(vhostblk_guest: Guest) -> None:
    """Requests that are under way together come back with their own data."""
    places = Places.of(vhostblk_guest)
    sectors = list(places.blocks(MANY // 2))
    expected = [vhostblk_guest.read(sector, places.block) for sector in sectors]
    tickets = [vhostblk_guest.submit(Request.read(at, places.block)) for at in sectors]
    assert [vhostblk_guest.wait(ticket).data for ticket in tickets] == expected


@pytest.mark.vhostblk(queues=2)
def test_queues_read_the_same(vhostblk_guest: Guest) -> None:
    """
    A disk is one disk on all its queues.

    Spec: virtio 1.3, 5.2.2.
    """
    places = Places.of(vhostblk_guest)
    for sector in places.blocks(8):
        first = vhostblk_guest.read(sector, places.block, queue=0)
        assert vhostblk_guest.read(sector, places.block, queue=1) == first


@on_both_formats
@pytest.mark.parametrize("where", ["behind the end", "over the end", "far away"])
def test_read_that_is_not_on_the_disk(vhostblk_guest: Guest, where: str) -> None:
    """
    A read behind the end fails, by its status only: the queue goes on.

    Spec: virtio 1.3, 5.2.6.
    """
    places = Places.of(vhostblk_guest)
    sector = {
        "behind the end": places.sectors,
        "over the end": places.last,
        "far away": (1 << 64) - 1,
    }[where]
    assert vhostblk_guest.run(Request.read(sector, 2 * places.block)).status == Status.IOERR
    assert len(vhostblk_guest.read(0, places.block)) == places.block


@on_both_formats
def test_long_read(vhostblk_guest: Guest) -> None:
    """A read of as many blocks as the device takes at once is that of its parts."""
    places = Places.of(vhostblk_guest)
    size = min(places.most * 4, places.sectors * SECTOR_SIZE)
    if vhostblk_guest.features & vb.F_SIZE_MAX:
        size = min(size, vhostblk_guest.config().size_max // places.block * places.block)
    step = places.block // SECTOR_SIZE
    parts = (vhostblk_guest.read(at * step, places.block) for at in range(size // places.block))
    assert vhostblk_guest.read(0, size) == b"".join(parts)


@on_both_formats
def test_flush_ends(vhostblk_guest: Guest) -> None:
    """
    A flush is answered with OK where it is offered.

    Spec: virtio 1.3, 5.2.6.2.
    """
    if not vhostblk_guest.features & vb.F_FLUSH:
        pytest.skip("the device does not offer FLUSH")
    vhostblk_guest.flush()


@on_both_formats
def test_id_stays(vhostblk_guest: Guest) -> None:
    """
    GET_ID gives up to 20 bytes, the same ones every time; or is not supported.

    Spec: virtio 1.3, 5.2.6.
    """
    first = vhostblk_guest.run(Request.get_id())
    assert first.status in {Status.OK, Status.UNSUPP}
    assert len(first.data) == SERIAL_SIZE
    again = vhostblk_guest.run(Request.get_id())
    assert again.status == first.status
    if first.status == Status.OK:
        name = first.data.partition(b"\0")[0]
        assert again.data.partition(b"\0")[0] == name


@on_both_formats
@pytest.mark.parametrize("kind", [3, 99, 0x7777_7776])
def test_request_of_no_type(vhostblk_guest: Guest, kind: int) -> None:
    """
    A type that the device does not know is not supported; the queue goes on.

    Spec: virtio 1.3, 5.2.6.
    """
    assert vhostblk_guest.run(Request(type=kind, in_length=SECTOR_SIZE)).status == Status.UNSUPP
    assert len(vhostblk_guest.read(0, Places.of(vhostblk_guest).block))
