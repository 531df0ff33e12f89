"""Starts, stops, resets and connections; nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vhostblk.guest.blk import Request
from vhostblk.guest.conformance.places import MANY, Places, on_all_rings, on_both_formats
from vhostblk.guest.guest import Guest
from vhostblk.guest.layout import slots_layout
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.options import GuestOptions
from vhostblk.guest.packed import wire_base
from vhostblk.spec.vhost_user import ProtocolFeature


def read_some(guest: Guest) -> list[bytes]:
    """Read some blocks, more than a small ring has room for in its lap."""
    places = Places.of(guest)
    return [guest.read(sector, places.block) for sector in places.blocks(16)]


@on_all_rings
def test_goes_on_behind_a_stop(vhostblk_guest: Guest) -> None:
    """
    A device that was stopped begins where its base says.

    Spec: vhost-user, VHOST_USER_GET_VRING_BASE, SET_VRING_BASE.
    """
    expected = read_some(vhostblk_guest)
    for _ in range(3):
        vhostblk_guest.stop()
        vhostblk_guest.start()
        assert read_some(vhostblk_guest) == expected


@on_both_formats
def test_stop_waits_for_what_is_in_flight(vhostblk_guest: Guest) -> None:
    """
    What was in flight at a stop is done by then, or is done behind the next start.

    Spec: vhost-user, "Ring states".
    """
    places = Places.of(vhostblk_guest)
    asked = [Request.read(at, places.block) for at in places.blocks(MANY // 2)]
    tickets = [vhostblk_guest.submit(request) for request in asked]
    vhostblk_guest.stop()
    vhostblk_guest.start()
    for request, ticket in zip(asked, tickets, strict=True):
        assert vhostblk_guest.wait(ticket) == vhostblk_guest.run(request)


@on_all_rings
def test_reboot_begins_anew(vhostblk_guest: Guest) -> None:
    """
    A reset forgets the rings, also with requests in flight.

    Spec: virtio 1.3, 2.4.
    """
    expected = read_some(vhostblk_guest)
    places = Places.of(vhostblk_guest)
    for _ in range(3):
        for sector in places.blocks(8):
            vhostblk_guest.submit(Request.read(sector, places.block))
        vhostblk_guest.reboot()
        assert read_some(vhostblk_guest) == expected


def test_next_guest_finds_the_disk(vhostblk_connect: Callable[..., Guest]) -> None:
    """
    One front-end after the other is served; one that hangs up amid its requests, too.

    Spec: vhost-user, "Reconnecting".
    """
    seen = []
    for _ in range(5):
        guest = vhostblk_connect()
        seen.append(read_some(guest))
        for sector in Places.of(guest).blocks(8):
            guest.submit(Request.read(sector, Places.of(guest).block))
        guest.close()
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_rings_begin_anywhere(
    vhostblk_connect: Callable[..., Guest], vhostblk_socket: Path, *, packed: bool
) -> None:
    """
    Indices wrap where they must, wherever a ring begins.

    Spec: virtio 1.3, 2.7.1, 2.8.1.
    """
    if GuestOptions(packed=packed).lacks(vhostblk_socket):
        pytest.skip("the back-end offers no packed rings")
    bases = (wire_base(3), wire_base(7, wrap=False)) if packed else (3, 0xFFFA)
    seen = []
    for base in (None, *bases):
        with vhostblk_connect(packed=packed, queue_size=8, base=base) as guest:
            seen.append([read_some(guest), read_some(guest)])
    assert all(one == seen[0] for one in seen)


def test_memory_in_many_regions(vhostblk_connect: Callable[..., Guest]) -> None:
    """
    Every piece of a ring and of a request may be in another region.

    Spec: vhost-user, VHOST_USER_SET_MEM_TABLE, ADD_MEM_REG.
    """
    with vhostblk_connect() as guest:
        expected = read_some(guest)
    with (
        GuestMemory(slots_layout(8, 1 << 20, gap=1 << 20), own_memfds=True) as memory,
        vhostblk_connect(memory=memory) as guest,
    ):
        assert read_some(guest) == expected


def test_memory_comes_while_the_device_runs(vhostblk_connect: Callable[..., Guest]) -> None:
    """
    A region that is added is used; one that is removed leaves the others as they were.

    Spec: vhost-user, VHOST_USER_ADD_MEM_REG, REM_MEM_REG.
    """
    first, second = slots_layout(2, 4 << 20, gap=1 << 20)
    with GuestMemory([first]) as memory, vhostblk_connect(memory=memory) as guest:
        if ProtocolFeature.CONFIGURE_MEM_SLOTS not in guest.agreement.protocol_features:
            pytest.skip("the back-end does not offer CONFIGURE_MEM_SLOTS")
        expected = read_some(guest)
        guest.add_region(second)
        assert read_some(guest) == expected
        guest.remove_region(second.gpa)
        assert read_some(guest) == expected
