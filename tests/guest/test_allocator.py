import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.guest import GuestError, GuestMemory, Region
from vhostblk.guest.allocator import Allocator
from vhostblk.guest.layout import PAGE

K = 1 << 10


def two_regions() -> Allocator:
    """Two regions of 64 KiB that touch."""
    allocator = Allocator()
    allocator.add(1 << 20, 64 * K)
    allocator.add((1 << 20) + 64 * K, 64 * K)
    return allocator


def test_allocate_goes_round_the_regions() -> None:
    """Successive pieces lie in different regions."""
    allocator = two_regions()
    places = [allocator.allocate(10, 16) for _ in range(4)]
    assert places == [0x100000, 0x110000, 0x100010, 0x110010]


def test_allocate_never_gives_address_0() -> None:
    """The first page stays free, whatever fits into it."""
    allocator = Allocator()
    allocator.add(0, 64 * K)
    assert allocator.allocate(1, 1) == 4096


def test_allocate_aligns() -> None:
    """An allocation begins at a multiple of its alignment."""
    allocator = two_regions()
    allocator.reserve(1 << 20, 1)
    assert allocator.allocate(16, 4096) == (1 << 20) + 4096


def test_allocate_reports_what_did_not_fit() -> None:
    """No piece is larger than a region."""
    allocator = two_regions()
    with pytest.raises(GuestError, match="no 65537 bytes"):
        allocator.allocate(64 * K + 1, 1)
    with pytest.raises(GuestError, match="cannot allocate 0 bytes"):
        allocator.allocate(0, 1)


def test_reserve_crosses_a_border_and_is_freed_whole() -> None:
    """A reservation may lie in two regions; freeing it gives both parts back."""
    allocator = two_regions()
    at = (1 << 20) + 63 * K
    assert allocator.reserve(at, 2 * K) == at
    for taken in (at, at + 2 * K - 1):
        with pytest.raises(GuestError, match="not free guest memory"):
            allocator.reserve(taken, 1)
    allocator.free(at)
    assert allocator.reserve(1 << 20, 128 * K) == 1 << 20


@pytest.mark.parametrize("at", [(1 << 20) - 1, (1 << 20) + 128 * K - 1])
def test_reserve_needs_memory(at: int) -> None:
    """A reservation that is partly no RAM takes nothing."""
    allocator = two_regions()
    with pytest.raises(GuestError, match="not free"):
        allocator.reserve(at, 2)
    assert allocator.reserve(1 << 20, 128 * K) == 1 << 20


def test_free_twice_is_an_error() -> None:
    """What is not handed out cannot be given back."""
    allocator = two_regions()
    gpa = allocator.allocate(1, 1)
    allocator.free(gpa)
    with pytest.raises(GuestError, match="nothing was allocated"):
        allocator.free(gpa)


def test_remove_needs_a_free_region() -> None:
    """A region in use stays; a free one is gone."""
    allocator = two_regions()
    gpa = allocator.allocate(1, 1)
    with pytest.raises(GuestError, match="still in use"):
        allocator.remove(1 << 20, 64 * K)
    allocator.free(gpa)
    allocator.remove(1 << 20, 64 * K)
    assert allocator.allocate(1, 1) == (1 << 20) + 64 * K


@given(st.lists(st.tuples(st.integers(1, 9000), st.sampled_from([1, 2, 16, 4096]), st.booleans())))
def test_allocations_are_disjoint_and_nothing_is_lost(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Pieces in use never overlap, and all of them freed is everything free."""
    allocator = two_regions()
    used: dict[int, int] = {}
    for length, align, keep in steps:
        try:
            gpa = allocator.allocate(length, align)
        except GuestError:
            continue
        assert gpa % align == 0
        assert all(gpa + length <= at or at + size <= gpa for at, size in used.items())
        used[gpa] = length
        if not keep:
            allocator.free(gpa)
            del used[gpa]
    for gpa in used:
        allocator.free(gpa)
    assert allocator.reserve(1 << 20, 128 * K) == 1 << 20


def test_nothing_new_is_in_a_region_that_is_offline() -> None:
    """What is there stays until it is freed; others are handed out of, and it may come back."""
    with GuestMemory([Region(0, 4 * PAGE), Region(1 << 20, 2 * PAGE)]) as memory:
        there = memory.reserve(1 << 20, 16)
        memory.set_offline(1 << 20)
        assert all(memory.allocate(16) < 4 * PAGE for _ in range(8))
        with pytest.raises(GuestError, match="no 12288 bytes of guest memory"):
            memory.allocate(3 * PAGE)
        memory.free(there)
        memory.remove_region(1 << 20)
        memory.add_region(Region(1 << 20, PAGE))
        assert {memory.allocate(16) >> 20 for _ in range(2)} == {0, 1}
    with GuestMemory() as memory, pytest.raises(GuestError, match="no region begins at"):
        memory.set_offline(4096)
