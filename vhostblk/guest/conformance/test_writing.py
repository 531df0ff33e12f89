"""Requests that destroy what is on the disk: they need ``--vhostblk-destroy``."""

from collections.abc import Callable

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
from vhostblk.guest.history import ConcurrentLoad, History, check, stamps
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec.virtio_blk import SECTOR_SIZE, Status


def noise(number: int, sector: int, length: int) -> bytes:
    """Return contents that are nowhere else."""
    return stamps(1, number, sector, length // SECTOR_SIZE)


@on_all_rings
def test_what_is_written_is_read(vhostblk_scratch: Guest) -> None:
    """
    Blocks from the first to the last hold what was written there last, and nothing else's.

    Spec: virtio 1.3, 5.2.6.
    """
    places = Places.of(vhostblk_scratch)
    sectors = list(dict.fromkeys((*places.blocks(8), places.last)))
    for number in (1, 2):
        for sector in sectors:
            vhostblk_scratch.write(sector, noise(number, sector, places.block))
        for sector in sectors:
            written = noise(number, sector, places.block)
            assert vhostblk_scratch.read(sector, places.block) == written


@on_both_formats
def test_framing_of_a_write_means_nothing(vhostblk_scratch: Guest) -> None:
    """
    However header and data are cut into descriptors, the same is written.

    Spec: virtio 1.3, 2.7.4.
    """
    places = Places.of(vhostblk_scratch)
    model = Request.write(0, bytes(places.most))
    for number, framing in enumerate(framings(vhostblk_scratch, model)):
        data = noise(number, 0, places.most)
        vhostblk_scratch.write(0, data, framing=framing)
        assert vhostblk_scratch.read(0, places.most) == data, framing


@on_both_formats
def test_many_writes_in_flight(vhostblk_scratch: Guest) -> None:
    """Requests that are under way together each write their own data."""
    places = Places.of(vhostblk_scratch)
    sectors = list(places.blocks(MANY // 2))
    tickets = [
        vhostblk_scratch.submit(Request.write(sector, noise(3, sector, places.block)))
        for sector in sectors
    ]
    assert all(vhostblk_scratch.wait(ticket).status == Status.OK for ticket in tickets)
    for sector in sectors:
        assert vhostblk_scratch.read(sector, places.block) == noise(3, sector, places.block)


@on_both_formats
def test_write_that_is_not_on_the_disk(vhostblk_scratch: Guest) -> None:
    """
    A write over the end fails and writes nothing, not even the part that is on the disk.

    Spec: virtio 1.3, 5.2.6.
    """
    places = Places.of(vhostblk_scratch)
    vhostblk_scratch.write(places.last, noise(4, places.last, places.block))
    for sector in (places.last, places.sectors):
        request = Request.write(sector, noise(5, sector, 2 * places.block))
        assert vhostblk_scratch.run(request).status == Status.IOERR
    kept = noise(4, places.last, places.block)
    assert vhostblk_scratch.read(places.last, places.block) == kept


def test_read_only_disk_is_not_written(vhostblk_destroy: None, vhostblk_guest: Guest) -> None:  # noqa: ARG001 - it skips
    """
    A write to a read-only disk fails.

    Spec: virtio 1.3, 5.2.6.2.
    """
    if not vhostblk_guest.features & vb.F_RO:
        pytest.skip("the disk can be written")
    places = Places.of(vhostblk_guest)
    before = vhostblk_guest.read(0, places.block)
    request = Request.write(0, noise(6, 0, places.block))
    assert vhostblk_guest.run(request).status == Status.IOERR
    assert vhostblk_guest.read(0, places.block) == before


def test_what_is_flushed_is_there_for_the_next_guest(
    vhostblk_scratch: Guest, vhostblk_connect: Callable[..., Guest]
) -> None:
    """
    Writes that were flushed outlive the connection.

    Spec: virtio 1.3, 5.2.6.2.
    """
    places = Places.of(vhostblk_scratch)
    data = noise(7, 0, places.block)
    vhostblk_scratch.write(0, data)
    if vhostblk_scratch.features & vb.F_FLUSH:
        vhostblk_scratch.flush()
    vhostblk_scratch.close()
    assert vhostblk_connect().read(0, places.block) == data


@pytest.mark.parametrize(
    "vhostblk_guest",
    [{"queues": queues, "packed": packed} for packed in (False, True) for queues in (1, 4)],
    indirect=True,
    ids=lambda words: f"{'packed' if words['packed'] else 'split'}-{words['queues']}",
)
def test_overlapping_requests_can_be_explained(vhostblk_scratch: Guest) -> None:
    """
    Whatever order a device chooses, each sector that is read was written so.

    Reads, writes, flushes, discards and zeroes overlap, on all queues.
    """
    history = History()
    load = ConcurrentLoad(vhostblk_scratch, history, sectors=256, longest=16, tag=0x7465_7374)
    load.fill()
    load.run(400)
    load.read_all()
    check(history)
