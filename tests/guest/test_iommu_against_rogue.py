"""What each personality of the IOMMU shows of a back-end that remembers or heeds too little."""

import contextlib
import itertools
from collections.abc import Callable

import pytest
from guest_peers.qsd import Connect
from guest_peers.rogue import CONTENT, Rogue
from guest_peers.translating import Fault, IotlbView, translating

from vhostblk.guest import FrontEnd, Guest, GuestError, GuestMemory, IommuOptions, Region, Request
from vhostblk.guest.iommu import Answer, Flush, Mapped
from vhostblk.spec.virtio_blk import Status

PAGE = 4096
MIB = 1 << 20
BLOCK = bytes([CONTENT]) * 3 * PAGE
FLUSHES: list[Flush] = ["page", "aligned", "global"]


def attach(
    backend: Rogue, options: Flush | IommuOptions, memory: GuestMemory | None = None
) -> Guest:
    front = FrontEnd.over(backend.front, timeout=1)
    guest = Guest(front, memory=memory, iommu=options)
    guest.start()
    return guest


def is_data(one: Mapped) -> bool:
    return one.length >= len(BLOCK) and one.perm != 3


def unmaps(guest: Guest) -> None:
    """Use the IOVAs of one request for other pages, again and again."""
    for _ in range(3):
        assert guest.read(0, len(BLOCK)) == BLOCK
        guest.memory.allocate(PAGE)


def restarts(guest: Guest) -> None:
    """Begin anew, with the rings and buffers elsewhere."""
    unmaps(guest)
    guest.reboot()
    unmaps(guest)


def boots(guest: Guest) -> None:
    """Be the firmware first."""
    with guest.firmware_phase():
        assert guest.read(0, len(BLOCK)) == BLOCK
    unmaps(guest)


def forbids(guest: Guest) -> None:
    """Let a buffer be read only that the device is to write."""
    assert guest.iommu is not None
    guest.iommu.answers = lambda one: "read-only" if is_data(one) else "prompt"
    got = guest.run(Request.read(0, len(BLOCK)))
    assert got.status == Status.IOERR
    assert got.data != BLOCK


GAMES = [unmaps, restarts, boots, forbids]
CAUGHT: list[tuple[Fault, Flush, Callable[[Guest], None]]] = [
    ("deaf", "page", unmaps),
    ("deaf", "aligned", unmaps),
    ("deaf", "global", unmaps),
    ("late", "aligned", unmaps),
    ("no wrap", "global", unmaps),
    ("restart", "page", restarts),
    ("restart", "page", boots),
    ("rights", "page", forbids),
]


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("flush", FLUSHES)
def test_a_good_back_end_passes(flush: Flush, game: Callable[[Guest], None]) -> None:
    """The same back-end without a fault does all that is asked of it."""
    with (
        translating() as backend,
        GuestMemory([Region(0, 4 * MIB)]) as memory,
        attach(backend, IommuOptions(flush=flush, top=12 * PAGE), memory) as guest,
    ):
        game(guest)
        assert isinstance(backend.view, IotlbView)
        assert guest.iommu is not None
        assert guest.iommu.misses == backend.view.misses > 3


@pytest.mark.parametrize(("fault", "flush", "game"), CAUGHT)
def test_a_bad_back_end_is_caught(
    fault: Fault, flush: Flush, game: Callable[[Guest], None]
) -> None:
    """Wrong bytes, a status that is not what it should be, or no answer at all."""
    top = 1 << 32 if fault == "no wrap" else 12 * PAGE
    with (
        translating(fault) as backend,
        GuestMemory([Region(0, 4 * MIB)]) as memory,
        attach(backend, IommuOptions(flush=flush, top=top), memory) as guest,
        pytest.raises((AssertionError, GuestError)),
    ):
        game(guest)


@pytest.mark.parametrize("answer", ["negative", "late", "slow", "wide"])
def test_answers_arrive(answer: Answer) -> None:
    """What the front-end says reaches a back-end that waits for it."""
    with translating() as backend, attach(backend, "page") as guest:
        assert guest.iommu is not None
        guest.iommu.delay = 0.01
        guest.iommu.answers = lambda one: answer if is_data(one) else "prompt"
        got = guest.run(Request.read(0, len(BLOCK)))
        assert got.status == (Status.IOERR if answer == "negative" else Status.OK)
        assert (got.data == BLOCK) == (answer != "negative")


def test_a_storm_arrives() -> None:
    """Updates nobody asked for, to pages that do not continue each other."""
    with translating() as backend, attach(backend, "page") as guest:
        assert guest.iommu is not None
        guest.iommu.flood(500)
        assert guest.read(0, len(BLOCK)) == BLOCK
        assert isinstance(backend.view, IotlbView)
        pages = sorted(backend.view._pages.items())[-500:]
        assert len({uva for _, (uva, _) in pages}) == 500
        assert all(b[1][0] != a[1][0] + PAGE for a, b in itertools.pairwise(pages))


def test_a_back_end_without_the_bit_is_turned_away(connect: Connect) -> None:
    """qemu-storage-daemon, as by QEMU with a vIOMMU."""
    with (
        pytest.raises(GuestError, match="iommu_platform=true is not supported"),
        contextlib.closing(connect(iommu="page")),
    ):
        pass
