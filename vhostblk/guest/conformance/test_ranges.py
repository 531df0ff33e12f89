"""DISCARD and WRITE_ZEROES: they need ``--vhostblk-destroy``."""

import pytest

from vhostblk.guest.blk import Range, Request
from vhostblk.guest.conformance.places import Places, on_both_formats
from vhostblk.guest.guest import Guest
from vhostblk.guest.history import stamps
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec.virtio_blk import SECTOR_SIZE, WRITE_ZEROES_F_UNMAP, Status


def need(guest: Guest, feature: int, name: str) -> Places:
    """Skip a test of what the device does not offer; else return its measures."""
    if not guest.features & feature:
        pytest.skip(f"the device does not offer {name}")
    return Places.of(guest)


def fill(guest: Guest, places: Places) -> bytes:
    """Write three blocks; return what they hold."""
    data = stamps(1, 8, 0, 3 * places.block // SECTOR_SIZE)
    if places.sectors * SECTOR_SIZE < len(data):
        pytest.skip("the disk has less than three blocks")
    guest.write(0, data)
    return data


@on_both_formats
@pytest.mark.parametrize("flags", [0, WRITE_ZEROES_F_UNMAP])
def test_zeroes_are_read_where_they_were_written(vhostblk_scratch: Guest, flags: int) -> None:
    """
    WRITE_ZEROES makes its range read as zeros, with and without UNMAP, and nothing else.

    Spec: virtio 1.3, 5.2.6.2.
    """
    places = need(vhostblk_scratch, vb.F_WRITE_ZEROES, "WRITE_ZEROES")
    data, block = fill(vhostblk_scratch, places), places.block
    sectors = block // SECTOR_SIZE
    vhostblk_scratch.write_zeroes([Range(sectors, sectors, flags)])
    found = vhostblk_scratch.read(0, len(data))
    assert found == data[:block] + bytes(block) + data[2 * block :]


@on_both_formats
def test_discard_leaves_the_rest(vhostblk_scratch: Guest) -> None:
    """
    A discard ends, and what is beside its range stays.

    Spec: virtio 1.3, 5.2.6.2.
    """
    places = need(vhostblk_scratch, vb.F_DISCARD, "DISCARD")
    data, block = fill(vhostblk_scratch, places), places.block
    sectors = block // SECTOR_SIZE
    vhostblk_scratch.discard([Range(sectors, sectors)])
    assert vhostblk_scratch.read(0, block) == data[:block]
    assert vhostblk_scratch.read(2 * sectors, block) == data[2 * block :]


@on_both_formats
@pytest.mark.parametrize("which", ["discard", "write_zeroes"])
def test_unknown_flag_is_not_supported(vhostblk_scratch: Guest, which: str) -> None:
    """
    A flag that the device does not know, and UNMAP in a discard: UNSUPP, and nothing is done.

    Spec: virtio 1.3, 5.2.6.2.
    """
    feature = vb.F_DISCARD if which == "discard" else vb.F_WRITE_ZEROES
    places = need(vhostblk_scratch, feature, which.upper())
    data = fill(vhostblk_scratch, places)
    make = Request.discard if which == "discard" else Request.write_zeroes
    for flags in (1 << 1, 1 << 31, *([WRITE_ZEROES_F_UNMAP] if which == "discard" else [])):
        request = make([Range(0, places.block // SECTOR_SIZE, flags)])
        assert vhostblk_scratch.run(request).status == Status.UNSUPP
    assert vhostblk_scratch.read(0, len(data)) == data


@on_both_formats
@pytest.mark.parametrize("which", ["discard", "write_zeroes"])
def test_range_that_is_not_on_the_disk(vhostblk_scratch: Guest, which: str) -> None:
    """
    A range behind the end, or over it, fails.

    Spec: virtio 1.3, 5.2.6.
    """
    feature = vb.F_DISCARD if which == "discard" else vb.F_WRITE_ZEROES
    places = need(vhostblk_scratch, feature, which.upper())
    make = Request.discard if which == "discard" else Request.write_zeroes
    sectors = places.block // SECTOR_SIZE
    for first in (places.sectors, places.last, (1 << 64) - sectors):
        request = make([Range(first, 2 * sectors)])
        assert vhostblk_scratch.run(request).status == Status.IOERR
    assert len(vhostblk_scratch.read(places.last, places.block)) == places.block
