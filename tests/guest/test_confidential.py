import mmap

import pytest
from guest_peers.misdeeds import MAP_FLAGS, MISDEEDS, far_write, good
from guest_peers.rogue import CONTENT, Piece, View, rogue
from guest_peers.scripted import offers, scripted

from vhostblk.guest import (
    DEFAULT_FEATURES,
    FrontEnd,
    Guest,
    GuestError,
    GuestMemory,
    Region,
    Request,
)
from vhostblk.guest.bounce import Bounced, SwiotlbOptions
from vhostblk.guest.confidential import Confidential, Kind
from vhostblk.guest.dma import BounceError, Direct, Marked
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.layout import MIB, PAGE
from vhostblk.spec.virtio_blk import Status

KINDS: list[Kind] = ["bounced", "sev", "snp", "tdx"]


def connect(front: object, confidential: Kind | Confidential) -> Guest:
    guest = Guest(FrontEnd.over(front), confidential=confidential)  # type: ignore[arg-type]
    guest.start()
    return guest


@pytest.mark.parametrize("kind", KINDS)
def test_reads_work_by_hand(kind: Kind) -> None:
    """The scripted back-end, which is nobody's, reads descriptors and writes data in any kind."""
    with rogue(good) as backend, connect(backend.front, kind) as guest:
        assert guest.read(0, 4096) == bytes([CONTENT]) * 4096
        assert isinstance(guest.dma, Bounced)
        assert guest.dma.used == 0


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_hole_map_of_a_good_back_end(kind: Kind) -> None:
    """What a good back-end touches are pages of rings and descriptors, and all of those exist."""
    with rogue(good) as backend, connect(backend.front, kind) as guest:
        for sector in range(20):
            guest.read(sector, 512 << sector % 8)
        assert isinstance(guest.dma, Bounced)
        assert touched_pages(guest.memory) == guest.dma.exposed


@pytest.mark.parametrize("kind", ["snp", "tdx"])
@pytest.mark.parametrize("misdeed", ["next_page", "far_read", "far_write"])
def test_hole_map_catches_a_bad_back_end(kind: Kind, misdeed: str) -> None:
    """One byte read on the next page of the pool, or touched far away, is one page too many."""
    with rogue(MISDEEDS[misdeed]) as backend, connect(backend.front, kind) as guest:
        guest.read(0, 4096)
        assert isinstance(guest.dma, Bounced)
        assert len(touched_pages(guest.memory) - guest.dma.exposed) == 1


@pytest.mark.parametrize("misdeed", ["populate", "register", "map_populate"])
def test_hole_map_catches_who_takes_all_memory(misdeed: str) -> None:
    """Read in advance, registered as buffers or populated by mmap: every page is there."""
    flags = MAP_FLAGS.get(misdeed, mmap.MAP_SHARED)
    with (
        rogue(MISDEEDS.get(misdeed, good), map_flags=flags) as backend,
        connect(backend.front, "snp") as guest,
    ):
        guest.read(0, 4096)
        assert len(touched_pages(guest.memory)) == 64 * MIB // PAGE


@pytest.mark.parametrize(("misdeed", "damaged"), [(good, set()), (far_write, {12 * MIB})])
def test_ciphertext_shows_who_wrote(misdeed: object, damaged: set[int]) -> None:
    """On SEV, where there are no holes, a private page that changed was written by the device."""
    with rogue(misdeed) as backend, connect(backend.front, "sev") as guest:  # type: ignore[arg-type]
        guest.read(0, 4096)
        assert guest.memory.damaged_pages() == damaged


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_beside_the_buffer_is_caught(kind: Kind) -> None:
    """A status of two bytes instead of one hits the canary."""

    def long_status(view: View, chain: list[Piece]) -> None:
        view.write(chain[-1].gpa, b"\0\0")

    with (
        rogue(long_status) as backend,
        connect(backend.front, kind) as guest,
        pytest.raises(BounceError, match="wrote outside the writable buffer of 1 bytes"),
    ):
        guest.read(0, 512)


@pytest.mark.parametrize("which", ["header", "indirect table"])
def test_a_write_into_what_is_read_only_is_caught(which: str) -> None:
    """The device changes neither a header nor an indirect table."""

    def scribble(view: View, chain: list[Piece]) -> None:
        at = chain[0].gpa if which == "header" else table
        view.write(at + 8, b"\xff")

    with rogue(scribble) as backend, connect(backend.front, "snp") as guest:
        # The rotor: three mappings of a first request, and its table behind them.
        table = guest.dma.pools[0].start + 3 * 2048 if isinstance(guest.dma, Bounced) else 0
        with pytest.raises(BounceError, match="wrote into the read-only buffer"):
            guest.read(0, 512)


def test_a_used_length_that_is_too_short_is_caught() -> None:
    """
    A device that writes more than it says is found out.

    Spec: virtio 1.3, 2.7.8.2.
    """
    with (
        rogue(good, claim=100) as backend,
        connect(backend.front, "bounced") as guest,
        pytest.raises(BounceError, match="wrote more than the 100 bytes"),
    ):
        guest.read(0, 512)


def test_a_failed_request_may_have_written_more_than_it_says() -> None:
    """
    A read that fails half way leaves data nobody counted; a write beside the buffer it may not.

    Spec: virtio 1.3, 2.7.8.2.
    """

    def beside(view: View, chain: list[Piece]) -> None:
        view.write(chain[-1].gpa + 1, b"\0")

    with (
        rogue(good, claim=1, status=b"\1") as backend,
        connect(backend.front, "bounced") as guest,
    ):
        assert guest.run(Request.read(0, 512)).status == Status.IOERR
    with (
        rogue(beside, claim=1, status=b"\1") as backend,
        connect(backend.front, "bounced") as guest,
        pytest.raises(BounceError, match="wrote outside"),
    ):
        guest.run(Request.read(0, 512))


def test_kinds_and_memory_must_agree() -> None:
    """A guest's own memory has to be of the kind's mode, and a kind has to exist."""
    for memory, kind in ((GuestMemory([Region(0, MIB)]), "snp"), (None, "s390")):
        with (
            scripted(offers(DEFAULT_FEATURES, 0)) as backend,
            pytest.raises(GuestError, match=r"plain memory for a guest|no confidential guest"),
        ):
            Guest(FrontEnd.over(backend.front), None, None, memory, kind)  # type: ignore[arg-type]
        if memory is not None:
            memory.close()


def test_own_memory_is_given_back() -> None:
    """When the guest is closed its memory is all free and private again."""
    with GuestMemory([Region(0, 16 * MIB)], mode="snp") as memory, rogue(good) as backend:
        with Guest(FrontEnd.over(backend.front), memory=memory, confidential="snp") as guest:
            guest.start()
            guest.read(0, 512)
        assert memory.shared_pages == frozenset()
        assert memory.reserve(0, 16 * MIB) == 0


def test_options_choose_the_driver() -> None:
    """Without a pool the driver maps nothing; with an address bit it forgets to mask that."""
    with GuestMemory([Region(0, 16 * MIB)], mode="sev") as memory:
        assert isinstance(Confidential(kind="sev", swiotlb=None).make_dma(memory), Direct)
        assert isinstance(Confidential(kind="sev", address_bit=51).make_dma(memory), Marked)
        options = SwiotlbOptions(nslabs=256, areas=2)
        dma = Confidential(kind="sev", swiotlb=options).make_dma(memory)
        assert isinstance(dma, Bounced)
        assert len(dma.pools[0]) == 256 * 2048
