"""An address space that is limited to a window, against a look at single bytes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.errors import Refused
from vhostblk.memory.parts import DESC
from vhostblk.memory.ranges import Limit, OnViolation, Ranges
from vhostblk.memory.regions import Place, RegionTable, Wanted
from vhostblk.memory.space import Access, AddressSpace, Denied, Missing, Translation

PAGE = 4096
PAGES = 8
UVA = 1 << 40
IOVA = 1 << 30
BOTH = Access.READ | Access.WRITE
MakeWanted = Callable[..., Wanted]

LAYOUTS = st.lists(st.integers(0, 2), min_size=1, max_size=5)
"""Pages of hole and region in turn."""
WINDOWS = st.lists(
    st.tuples(st.integers(0, PAGES * PAGE), st.integers(0, 3 * PAGE)), min_size=0, max_size=3
)
"""At any byte, though an operator names pages: the arithmetic does not depend on that."""
MAPPED = st.dictionaries(
    st.integers(0, PAGES - 1), st.tuples(st.integers(0, PAGES - 1), st.integers(1, 3)), max_size=6
)
"""IOVA page to page and permission."""


def table_of(layout: list[int], memory: int) -> RegionTable:
    made, at = [], 0
    for turn, pages in enumerate(layout):
        if turn % 2 and pages:
            # Front-end addresses run the other way round, so that one cannot pass for another.
            place = Place(gpa=at * PAGE, size=pages * PAGE, uva=UVA - (at + pages) * PAGE)
            made.append(Wanted(place=place, mmap_offset=at * PAGE, fd=os.dup(memory)))
        at += pages
    return RegionTable().replace(made).table


@contextmanager
def mapped(layout: list[int], memory: int) -> Iterator[RegionTable]:
    table = table_of(layout, memory)
    yield table
    for region in table.regions:
        region.mapping.release()


def gpa_at(table: RegionTable, uva: int) -> int | None:
    region = table.at_uva(uva)
    return None if region is None else region.place.gpa + uva - region.place.uva


def expected(access: Access, policy: OnViolation, *, inside: bool) -> Access:
    if inside:
        return access
    return {
        OnViolation.WARN: access | Access.NOTED,
        OnViolation.FAIL: Access(0),
        OnViolation.BREAK: Access.FATAL,
    }[policy]


def found(space: AddressSpace, iova: int) -> tuple[int, Access, int] | None:
    rows = [row for row in space.segments if row.iova <= iova < row.iova + row.length]
    assert len(rows) <= 1
    return None if not rows else (rows[0].host + iova - rows[0].iova, rows[0].access, iova)


def probes(window: Ranges, base: int) -> set[int]:
    """The bytes on both sides of every border: those between two borders are alike."""
    borders = {page * PAGE for page in range(PAGES + 1)}
    borders |= {border for row in window.rows for border in row}
    return {base + border + step for border in borders for step in (-1, 0, 1)}


@settings(max_examples=60)
@given(LAYOUTS, WINDOWS, st.sampled_from(OnViolation))
def test_limited_memory_agrees_with_looking_at_bytes(
    memory: int, layout: list[int], ranges: list[tuple[int, int]], policy: OnViolation
) -> None:
    """Same bytes in the same places; inside as before, outside as the policy says."""
    inside = Ranges.of(ranges)
    with mapped(layout, memory) as table:
        plain = AddressSpace.build(table)
        space = AddressSpace.build(table, window=Limit(inside, policy))
        for at in probes(inside, 0):
            before, after = found(plain, at), found(space, at)
            if before is None:
                assert after is None
                continue
            host, access, _ = before
            allowed = expected(access, policy, inside=inside.holds(at, 1))
            assert after == (host, allowed, at)


@settings(max_examples=60)
@given(LAYOUTS, MAPPED, WINDOWS, st.sampled_from(OnViolation))
def test_limited_iovas_agree_with_looking_at_bytes(
    memory: int,
    layout: list[int],
    pages: dict[int, tuple[int, int]],
    ranges: list[tuple[int, int]],
    policy: OnViolation,
) -> None:
    """Behind an IOMMU it is the GPA that counts, not the IOVA."""
    inside = Ranges.of(ranges)
    known = [
        Translation(
            iova=IOVA + page * PAGE,
            size=PAGE,
            uaddr=UVA - (target + 1) * PAGE,
            access=Access(perm),
        )
        for page, (target, perm) in sorted(pages.items())
    ]
    with mapped(layout, memory) as table:
        plain = AddressSpace.build(table, known)
        space = AddressSpace.build(table, known, window=Limit(inside, policy))
        by_page = {one.iova: one for one in known}
        borders = probes(inside, 0)
        offsets = {border % PAGE for border in borders} | {0, 1, PAGE - 1}
        for at in sorted(page + offset for page in by_page for offset in offsets):
            one = by_page[at // PAGE * PAGE]
            gpa = gpa_at(table, one.uaddr + at % PAGE)
            if gpa is None:
                assert found(space, at) is None
                continue
            before = found(plain, at)
            assert before is not None
            allowed = expected(one.access, policy, inside=inside.holds(gpa, 1))
            assert found(space, at) == (before[0], allowed, at)


@pytest.mark.parametrize("policy", [OnViolation.FAIL, OnViolation.BREAK])
def test_outside_is_denied_and_never_asked_for(policy: OnViolation, wanted: MakeWanted) -> None:
    """Who asks for more translations does not ask for what policy denies."""
    table = RegionTable().replace([wanted(0, 4)]).table
    known = [Translation(iova=IOVA, size=2 * PAGE, uaddr=UVA, access=BOTH)]
    window = Limit(Ranges.of([(PAGE, PAGE)]), policy)
    space = AddressSpace.build(table, known, window=window)
    with pytest.raises(Denied) as denied:
        space.translate(IOVA, PAGE, Access.READ)
    assert denied.value.iova == IOVA
    with pytest.raises(Missing):
        space.translate(IOVA + 2 * PAGE, 1, Access.READ)
    assert space.translate(IOVA + PAGE, PAGE, Access.WRITE)[0].length == PAGE
    for region in table.regions:
        region.mapping.release()


@pytest.mark.parametrize("translated", [False, True])
def test_rings_may_lie_outside_unless_they_must_not(
    wanted: MakeWanted, *, translated: bool
) -> None:
    """A swiotlb guest has its rings beside the pool; a restricted pool has them in it."""
    table = RegionTable().replace([wanted(0, 4)]).table
    known = [Translation(iova=IOVA, size=4 * PAGE, uaddr=UVA, access=BOTH)] if translated else None
    inside = Ranges.of([(PAGE, PAGE)])

    def place(at: int, *, rings_too: bool) -> list[tuple[int, int]]:
        limit = Limit(inside, OnViolation.FAIL, rings_too)
        space = AddressSpace.build(table, known, window=limit)
        if translated:
            pieces = space.ring_pieces_by_iova(IOVA + at, 256, DESC)
        else:
            pieces = space.ring_pieces(UVA + at, 256, DESC)
        return space.guest_ranges(pieces)

    assert place(0, rings_too=False) == [(0, 256)]
    assert place(PAGE, rings_too=True) == [(PAGE, 256)]
    for at in (0, 2 * PAGE, PAGE - 128, 2 * PAGE - 128):
        with pytest.raises(Refused, match=r"ring at GPA 0x[0-9a-f]+ lies outside the shared"):
            place(at, rings_too=True)
    for region in table.regions:
        region.mapping.release()
