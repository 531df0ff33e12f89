"""Protected memory as a whole guest has it."""

import os

import pytest

from vhostblk.guest import GuestError, GuestMemory, Region, slots_layout
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.layout import PAGE
from vhostblk.guest.pages import Mode, PageStateError, Protection

CONFIDENTIAL: list[Mode] = ["sev", "snp", "tdx"]
TEXT = b"the guest's own words, longer than a block " * 300


def in_memfd(memory: GuestMemory) -> bytes:
    mapping = memory.mappings[0]
    return os.pread(mapping.fd, mapping.region.size, mapping.offset)


@pytest.mark.parametrize("mode", CONFIDENTIAL)
def test_private_bytes_are_not_in_the_memfd(mode: Mode) -> None:
    """What the guest writes to private pages it reads back, over pages; the host finds no word."""
    with GuestMemory([Region(PAGE, 16 * PAGE)], mode=mode) as memory:
        memory.write(PAGE + 4000, TEXT)
        assert memory.read(PAGE + 4000, len(TEXT)) == TEXT
        memory.store_u16(2 * PAGE + 6, 0xBEEF)
        assert memory.load_u16(2 * PAGE + 6) == 0xBEEF
        assert b"words" not in in_memfd(memory)
        assert not memory.is_shared(PAGE)
        assert memory.shared_pages == frozenset()


@pytest.mark.parametrize("mode", CONFIDENTIAL)
def test_shared_bytes_are_in_the_memfd(mode: Mode) -> None:
    """What the guest writes to shared pages the host reads, and the other way round."""
    with GuestMemory([Region(0, 16 * PAGE)], mode=mode) as memory:
        memory.set_shared(4 * PAGE, 4 * PAGE)
        memory.write(4 * PAGE + 100, TEXT)
        assert in_memfd(memory)[4 * PAGE + 100 :][: len(TEXT)] == TEXT
        os.pwrite(memory.mappings[0].fd, b"\xcd\xab", 5 * PAGE)
        assert memory.load_u16(5 * PAGE) == 0xABCD
        assert memory.shared_pages == {at * PAGE for at in range(4, 8)}


@pytest.mark.parametrize("mode", ["snp", "tdx"])
def test_hole_map_is_the_shared_pages_in_use(mode: Mode) -> None:
    """Private pages are holes; a shared one appears when it is written and goes with its state."""
    with GuestMemory([Region(0, 16 * PAGE)], mode=mode) as memory:
        memory.write(0, b"x" * 3 * PAGE)
        memory.set_shared(4 * PAGE, 2 * PAGE)
        assert touched_pages(memory) == frozenset()
        memory.write(5 * PAGE, b"x")
        assert touched_pages(memory) == {5 * PAGE}
        memory.set_private(5 * PAGE, PAGE)
        assert touched_pages(memory) == frozenset()
        assert memory.read(5 * PAGE, 1) == b"\0"
        memory.set_shared(5 * PAGE, PAGE)
        assert memory.read(5 * PAGE, 1) == b"\0", "neither the private nor the old shared byte"


def test_without_punching_old_bytes_stay() -> None:
    """As with huge pages: the host still reads what was shared, but nothing the guest adds."""
    with GuestMemory([Region(0, 4 * PAGE)], mode=Protection(mode="snp", punch=False)) as memory:
        memory.set_shared(0, PAGE)
        memory.write(0, b"old")
        memory.set_private(0, PAGE)
        memory.write(0, b"new")
        assert in_memfd(memory)[:3] == b"old"
        memory.set_shared(0, PAGE)
        assert memory.read(0, 3) == b"old"


def test_sev_conversion_converts_nothing() -> None:
    """After either conversion the guest reads noise until it writes the page anew."""
    with GuestMemory([Region(0, PAGE)], mode="sev") as memory:
        memory.write(0, b"private" + bytes(9))
        memory.set_shared(0, PAGE)
        assert memory.read(0, 16) == in_memfd(memory)[:16] != b"private" + bytes(9)
        memory.write(0, b"shared" + bytes(10))
        memory.set_private(0, PAGE)
        assert memory.read(0, 16) != b"shared" + bytes(10)
        assert memory.read(0, 16, private=False) == b"shared" + bytes(10)


def test_seeds_decide_the_ciphertext() -> None:
    """The same seeds give the same memory; another key or another place gives another."""
    seen = []
    for seed, spa_seed in ((1, 1), (1, 1), (2, 1), (1, 2)):
        protection = Protection(mode="sev", seed=seed, spa_seed=spa_seed)
        with GuestMemory([Region(0, PAGE)], mode=protection) as memory:
            memory.write(0, bytes(PAGE))
            seen.append(in_memfd(memory))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3


def test_move_page_keeps_what_the_guest_reads() -> None:
    """The host may move a private page; only the ciphertext changes."""
    with GuestMemory([Region(0, 2 * PAGE)], mode="sev") as memory:
        memory.write(PAGE, TEXT[:PAGE])
        before = in_memfd(memory)[PAGE:]
        memory.move_page(PAGE + 123)
        assert in_memfd(memory)[PAGE:] != before
        assert memory.read(PAGE, PAGE) == TEXT[:PAGE]


@pytest.mark.parametrize("mode", ["snp", "tdx"])
def test_wrong_form_writes_nothing(mode: Mode) -> None:
    """An access that ends on a page of the other form is an error before the first byte."""
    with GuestMemory([Region(0, 4 * PAGE)], mode=mode) as memory:
        memory.set_shared(0, PAGE)
        with pytest.raises(PageStateError, match="GPA 0x1000"):
            memory.write(PAGE - 2, b"four", private=False)
        assert memory.read(0, PAGE) == bytes(PAGE)
        with pytest.raises(PageStateError, match="GPA 0x0"):
            memory.read(0, 1, private=True)


def test_conversions_are_whole_pages_of_ram() -> None:
    """Anything else is refused."""
    with GuestMemory([Region(0, 4 * PAGE)], mode="snp") as memory:
        for gpa, length in ((1, PAGE), (0, 100)):
            with pytest.raises(GuestError, match="not whole pages"):
                memory.set_shared(gpa, length)
        with pytest.raises(GuestError, match="no RAM"):
            memory.set_shared(4 * PAGE, PAGE)


@pytest.mark.parametrize("mode", CONFIDENTIAL)
def test_a_region_in_the_place_of_another_is_private(mode: Mode) -> None:
    """Nothing of a region that was unplugged is left for the next one."""
    with GuestMemory(slots_layout(2, 2 * PAGE, base=0), own_memfds=True, mode=mode) as memory:
        memory.set_shared(2 * PAGE, PAGE)
        memory.write(3 * PAGE, b"private")
        memory.remove_region(2 * PAGE)
        memory.add_region(Region(2 * PAGE, 2 * PAGE))
        assert not memory.is_shared(2 * PAGE)
        assert memory.read(3 * PAGE, 7) != b"private"


def test_damage_by_the_host_is_found() -> None:
    """A private page the host wrote into is named, until the guest writes all of it anew."""
    with GuestMemory([Region(0, 8 * PAGE)], mode="sev") as memory:
        memory.write(0, TEXT[: 3 * PAGE])
        memory.set_shared(5 * PAGE, PAGE)
        memory.write(5 * PAGE, b"anybody's")
        memory.move_page(PAGE)
        assert memory.damaged_pages() == frozenset()
        for gpa in (PAGE + 9, 5 * PAGE + 9, 7 * PAGE + 9):  # its own, shared, never written
            os.pwrite(memory.mappings[0].fd, b"host", gpa)
        assert memory.damaged_pages() == {PAGE, 7 * PAGE}
        memory.write(PAGE + 512, b"beside it")
        assert memory.damaged_pages() == {PAGE, 7 * PAGE}
        memory.write(PAGE, bytes(PAGE))
        assert memory.damaged_pages() == {7 * PAGE}
        memory.set_private(5 * PAGE, PAGE)
        assert memory.damaged_pages() == {7 * PAGE}
    with GuestMemory([Region(0, PAGE)], mode="snp") as memory:
        os.pwrite(memory.mappings[0].fd, b"host", 0)
        assert memory.damaged_pages() == frozenset(), "the guest does not see it"


def test_share_off_shows_the_host_zeros() -> None:
    """Without share=on the guest reads what it wrote and the host never does."""
    with GuestMemory([Region(0, PAGE)], share=False) as memory:
        memory.write(0, b"hello")
        assert memory.read(0, 5) == b"hello"
        assert in_memfd(memory) == bytes(PAGE)
    with pytest.raises(GuestError, match="snp cannot be a private copy"):
        GuestMemory([Region(0, PAGE)], mode="snp", share=False)


def test_a_plain_machine_knows_no_states() -> None:
    """Conversions mean nothing there, and everything is the host's to see."""
    with GuestMemory([Region(0, PAGE)]) as memory:
        memory.write(0, b"same")
        memory.set_shared(0, PAGE)
        memory.set_private(0, PAGE)
        memory.move_page(0)
        assert memory.is_shared(0)
        assert in_memfd(memory)[:4] == b"same"
