"""
What samples tell of a guest.

The table of addresses comes from traces of real guests (Debian 6.12 under QEMU: plain,
swiotlb=force, intel-iommu; SeaBIOS) and, for OVMF, from its source.
"""

import random
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.memory.locate import locate
from vhostblk.memory.ranges import PAGE, Range
from vhostblk.memory.regions import RegionTable, Wanted
from vhostblk.memory.sample import Role, Sample
from vhostblk.memory.space import Access, AddressSpace, Translation
from vhostblk.memory.window import MAX_ISLANDS, SCORED, SLOT, GuestDma, Tap, Use, Window

MIB = 1 << 20
GIB = 1 << 30
POOL = 0x1BC0_0000
Parts = Sequence[tuple[Role, int, int]]
"""(role, address, length) of each descriptor of a request."""


def itself(iova: int, length: int) -> list[Range]:
    """Without an IOMMU an address is an address."""
    return [(iova, length)]


def samples(chains: Iterable[Parts], *, outside: bool = False) -> list[Sample]:
    return [
        Sample(number % 65536, at, length, role, outside)
        for number, parts in enumerate(chains)
        for role, at, length in parts
    ]


def seen(chains: Iterable[Parts], *, whole: int = 1 << 20) -> Window:
    """What is known when all of these requests have been sampled."""
    window = Window()
    tap = Tap(window, whole=whole)
    tap.take(samples(chains), itself)
    tap.end(itself)
    return window


def request(header: int, data: int, status: int, *, size: int = 4096, table: int = 0) -> Parts:
    """A read, in the framing that everybody uses."""
    parts = [(Role.READABLE, header, 16), (Role.WRITABLE, data, size), (Role.WRITABLE, status, 1)]
    return [(Role.TABLE, table, 48), *parts] if table else parts


def plain(number: int) -> Parts:
    """Linux: header and status in one struct, 16 bytes apart; buffers all over memory."""
    struct = 0x0734_5148 + 0x340 * number
    table = 0x0611_2300 + 0x40 * number
    data = number * 0x2F3_1000 % (8 * GIB)
    return request(struct, data, struct + 16, size=1 * MIB, table=table)


def swiotlb(number: int) -> Parts:
    """Linux with swiotlb: table, header and status in slots of their own, data on a page."""
    at = POOL + number * 6 * SLOT % (64 * MIB)
    data = at + 3 * SLOT + (at + 3 * SLOT) % PAGE
    return request(at, data, at + SLOT, table=at + 2 * SLOT)


def swiotlb_direct(number: int) -> Parts:
    """The same without an indirect table."""
    return swiotlb(number)[1:]


def behind_iommu(number: int) -> Parts:
    """Linux behind an IOMMU: pages of their own, where the driver had them in a page."""
    page = 0xFFFF_0000 - 3 * PAGE * number
    return request(page + 0x148, page + PAGE, page + 2 * PAGE + 0x158)


def seabios(number: int) -> Parts:
    """SeaBIOS: all on the stack, the status right below the header; no indirect table."""
    return request(0x6F38, 0x7C00 + 512 * (number % 64), 0x6F37, size=512)


def ovmf(number: int) -> Parts:
    """OVMF in a confidential guest: pages for each mapping, anywhere."""
    page = number * 37 * MIB % (2 * GIB)
    return request(page, page + 5 * MIB, page + 9 * MIB, size=512)


@pytest.mark.parametrize(
    ("kind", "is_a"),
    [
        (plain, GuestDma.DIRECT),
        (swiotlb, GuestDma.BOUNCED),
        (swiotlb_direct, GuestDma.BOUNCED),
        (behind_iommu, GuestDma.DIRECT),  # but see below: such a ring is translated
        (seabios, GuestDma.DIRECT),
        (ovmf, GuestDma.BOUNCED),
    ],
)
def test_guest_is_told_by_32_requests(kind: Callable[[int], Parts], is_a: GuestDma) -> None:
    """Each kind of guest is known after 32 requests and not before."""
    assert seen(map(kind, range(SCORED - 1))).guest_dma is GuestDma.UNKNOWN
    assert seen(map(kind, range(SCORED))).guest_dma is is_a
    assert seen(map(kind, range(10 * SCORED))).guest_dma is is_a


def test_translated_ring_is_enough() -> None:
    """Behind an IOMMU it does not matter where requests are."""
    window = seen(map(behind_iommu, range(3)))
    window.translated = True
    assert window.guest_dma is GuestDma.IOMMU


@pytest.mark.parametrize(
    "odd",
    [
        request(POOL + 512, POOL + PAGE, POOL + SLOT),
        request(POOL, POOL + PAGE, POOL + SLOT + 1),
        request(POOL, POOL + PAGE, POOL + SLOT, table=POOL + 8 * PAGE + 16),
        [(Role.READABLE, POOL, 16), (Role.WRITABLE, POOL + PAGE, 4097)],
        [(Role.READABLE, POOL, 16), (Role.WRITABLE, POOL, 1)],
    ],
    ids=["header", "status", "table", "status behind data", "header is status"],
)
def test_one_request_that_no_pool_makes(odd: Parts) -> None:
    """One of 32 that swiotlb would not have made is the proof that it did not make them."""
    others = list(map(swiotlb, range(SCORED - 1)))
    assert seen([*others, swiotlb(SCORED)]).guest_dma is GuestDma.BOUNCED
    assert seen([*others[:9], odd, *others[9:]]).guest_dma is GuestDma.DIRECT


def test_what_comes_later_does_not_count() -> None:
    """Of later requests samples may be missing; 32 have decided."""
    later = map(plain, range(100))
    assert seen([*map(swiotlb, range(SCORED)), *later]).guest_dma is GuestDma.BOUNCED
    assert seen(map(plain, range(100)), whole=SCORED - 1).guest_dma is GuestDma.UNKNOWN


def test_chain_that_is_no_request_does_not_count() -> None:
    """Without a header or a status, or with empty ones, nothing can be said."""
    bad: list[Parts] = [
        [(Role.WRITABLE, 5, 1)],
        [(Role.READABLE, 7, 16)],
        [(Role.READABLE, 7, 0), (Role.WRITABLE, 5, 0)],
        [(Role.TABLE, 7, 16)],
    ]
    window = seen([*bad, *map(swiotlb, range(SCORED))])
    assert window.guest_dma is GuestDma.BOUNCED
    assert window.scored == SCORED
    assert seen(bad).scored == 0


def test_requests_of_several_queues_count_together() -> None:
    """Two queues with 16 requests each make 32."""
    window = Window()
    for first in (0, 16):
        tap = Tap(window, whole=SCORED)
        tap.take(samples(map(swiotlb, range(first, first + 16))), itself)
        tap.end(itself)
    assert window.guest_dma is GuestDma.BOUNCED


# ---- pages --------------------------------------------------------------------------------


def test_pages_by_use() -> None:
    """Each page is where it belongs; a header with data behind it is both."""
    window = seen(
        [
            [
                (Role.TABLE, 0x1_0000, 64),
                (Role.READABLE, 0x2_0FF0, 16 + 4096),
                (Role.READABLE, 0x3_0000, 4096),
                (Role.WRITABLE, 0x4_0000, 4096),
                (Role.WRITABLE, 0x5_0FFF, 4097 + 1),
            ]
        ]
    )
    assert window.pages[Use.TABLE].islands() == [(0x1_0000, 4096)]
    assert window.pages[Use.META].islands() == [(0x2_0000, 4096), (0x5_2000, 4096)]
    data = [(0x2_1000, 4096), (0x3_0000, 4096), (0x4_0000, 4096), (0x5_0000, 8192)]
    assert window.pages[Use.DATA].islands() == data
    assert window.segment_max == 4112
    assert window.pages[Use.RING].islands() == []
    assert window.shared().size == 8 * PAGE


def test_rings_are_not_in_the_window() -> None:
    """Coherent memory is shared, too, and may be gigabytes away from the pool."""
    window = seen(map(swiotlb, range(SCORED)))
    window.pages[Use.RING].add(6 * GIB, 8192)
    shared = window.shared()
    assert shared.span < MIB
    assert window.is_window(shared)


def test_denied_address_is_in_no_page() -> None:
    """What the device did not touch is not where it goes, though it says what the guest is."""
    window = Window()
    tap = Tap(window, whole=SCORED)
    tap.take(samples(map(plain, range(SCORED)), outside=True), itself)
    tap.end(itself)
    assert window.shared().size == 0
    assert window.guest_dma is GuestDma.DIRECT


def test_direct_guest_has_no_window() -> None:
    """However little memory it uses."""
    window = seen([request(0x1008, 0x2000, 0x1018)] * SCORED)
    assert window.guest_dma is GuestDma.DIRECT
    assert not window.is_window(window.shared())


def test_firmware_has_no_window() -> None:
    """Buffers scattered over memory, or over many places in it, are no pool."""
    window = seen(map(ovmf, range(10 * SCORED)))
    assert window.guest_dma is GuestDma.BOUNCED
    assert window.shared().span > GIB
    assert not window.is_window(window.shared())
    pages = seen(request(i * 12 * MIB, i * 12 * MIB + PAGE, i * 12 * MIB + SLOT) for i in range(65))
    assert pages.guest_dma is GuestDma.BOUNCED
    assert pages.shared().span < GIB
    assert not pages.is_window(pages.shared()), f"more than {MAX_ISLANDS} islands"


@pytest.mark.parametrize("every", [1, 61])
def test_pool_is_a_window_however_sparse_the_samples(every: int) -> None:
    """One request in 61 leaves holes between pages; the pool is one island all the same."""
    window = seen(swiotlb(i * every) for i in range(2000))
    shared = window.shared()
    assert window.is_window(shared)
    assert shared.islands()[0][0] == POOL
    assert 20 * MIB < shared.span <= 64 * MIB + PAGE


def test_window_stays_small_however_a_guest_scatters() -> None:
    """Bounded memory: a guest that uses every page of 64 bits is coarse, not large."""
    rng = random.Random(2)
    where = [rng.getrandbits(52) << 12 for _ in range(3 * 6000)]
    window = seen(request(*where[i : i + 3]) for i in range(0, len(where), 3))
    assert all(len(pages.islands()) <= 4096 for pages in window.pages.values())
    assert window.guest_dma is GuestDma.BOUNCED  # each is on a page of its own
    assert not window.is_window(window.shared())


PART = st.tuples(st.sampled_from(Role), st.integers(0, 40 * 512), st.integers(0, 9000))


@settings(max_examples=40)
@given(st.lists(st.lists(PART, min_size=1, max_size=6), max_size=12), st.data())
def test_samples_may_come_in_any_pieces(chains: list[Parts], data: st.DataObject) -> None:
    """Every page of every buffer is in it and no other, wherever the samples are cut."""
    every = samples(chains)
    window = Window()
    tap = Tap(window, whole=SCORED)
    while every:
        cut = data.draw(st.integers(1, len(every)))
        tap.take(every[:cut], itself)
        every = every[cut:]
    tap.end(itself)
    buffers = [(at, n) for parts in chains for _, at, n in parts if n]
    pages = {page for at, n in buffers for page in range(at // PAGE, (at + n - 1) // PAGE + 1)}
    found = {
        page for at, n in window.shared().islands() for page in range(at // PAGE, (at + n) // PAGE)
    }
    assert found == pages
    at_once = seen(chains)
    assert window.scored == at_once.scored
    assert all(window.pages[use].islands() == at_once.pages[use].islands() for use in Use)


# ---- where they are -----------------------------------------------------------------------


@pytest.fixture
def table(wanted: Callable[..., Wanted]) -> Iterable[RegionTable]:
    """Return two regions of 16 pages: at 0, and at 4 GiB."""
    change = RegionTable().replace([wanted(0, 16), wanted(4 * GIB, 16, offset=16 * PAGE)])
    yield change.table
    for region in change.table.regions:
        region.mapping.release()


def test_locate_without_an_iommu(table: RegionTable) -> None:
    """An address is a GPA as far as there is memory."""
    space = AddressSpace.build(table)
    assert locate(space, 0x1008, 32) == [(0x1008, 32)]
    assert locate(space, 15 * PAGE, 3 * PAGE) == [(15 * PAGE, PAGE)]
    assert locate(space, 4 * GIB - 8, 16) == [(4 * GIB, 8)]
    assert locate(space, GIB, PAGE) == []
    assert locate(space, (1 << 64) - 8, 16) == []


def test_locate_behind_an_iommu(table: RegionTable) -> None:
    """An IOVA is wherever it is translated to, in pieces; what is not known is left out."""
    uva = 1 << 40
    known = [
        Translation(iova=0xF000, size=PAGE, uaddr=uva + 3 * PAGE, access=Access.READ),
        Translation(iova=0x1_0000, size=PAGE, uaddr=uva + 4 * GIB, access=Access.WRITE),
        Translation(iova=0x1_2000, size=PAGE, uaddr=uva + 5 * PAGE, access=Access.READ),
    ]
    space = AddressSpace.build(table, known)
    found = locate(space, 0xF800, 0x3000)
    assert found == [(3 * PAGE + 0x800, 0x800), (4 * GIB, PAGE), (5 * PAGE, 0x800)]
    assert locate(space, 0, 0xF000) == []
