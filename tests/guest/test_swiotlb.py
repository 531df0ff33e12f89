"""The numbers are those of Linux's swiotlb; see its documentation, core-api/swiotlb."""

import random

import pytest

from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE
from vhostblk.guest.swiotlb import SET, SLOT, Pool, max_mapping

BASE = 1 << 20
ORIG = 0x12345


def taken(pool: Pool, size: int, orig: int = ORIG, cpu: int = 0) -> int:
    address = pool.take(orig, size, cpu=cpu)
    assert address is not None
    return address


def test_limits_are_linuxs() -> None:
    """A mapping is 256 KiB at most; a device that wants page offsets kept gets 252 KiB."""
    assert (SLOT, SET) == (2048, 128)
    assert max_mapping() == 262144
    assert max_mapping(4095) == 252 << 10


def test_a_small_request_takes_five_slots() -> None:
    """Header, status, indirect table and 4 KiB of data: 1 + 1 + 1 + 2 slots, 10 KiB of the pool."""
    pool = Pool(BASE, 1024)
    for size in (16, 1, 48, 4096):
        taken(pool, size)
    assert pool.used == 5


def test_mappings_rise_and_wrap() -> None:
    """The rotor goes on from the last mapping, even if slots in front of it are free."""
    pool = Pool(BASE, SET)
    first = taken(pool, 100)
    pool.give_back(first)
    assert first == BASE
    assert [taken(pool, 100) for _ in range(3)] == [BASE + i * SLOT for i in (1, 2, 3)]
    addresses = [taken(pool, 100) for _ in range(SET - 3)]
    assert addresses[-2:] == [BASE + (SET - 1) * SLOT, BASE]
    assert pool.take(ORIG, 1) is None


@pytest.mark.parametrize("size", [PAGE, PAGE + 1, 10 * PAGE])
def test_a_page_or_more_begins_on_a_page(size: int) -> None:
    """Short mappings begin on a slot, others on a page, whatever the address they stand for."""
    pool = Pool(BASE, 1024)
    assert taken(pool, 1) == BASE
    assert taken(pool, size) == BASE + PAGE
    assert taken(pool, SLOT) % SLOT == 0


def test_the_longest_mapping_needs_a_whole_set() -> None:
    """256 KiB fit into an empty set only, though as many slots are free elsewhere."""
    pool = Pool(BASE, 2 * SET)
    small = taken(pool, 1)
    assert taken(pool, max_mapping()) == BASE + SET * SLOT
    assert pool.take(ORIG, max_mapping()) is None
    assert pool.used == SET + 1
    pool.give_back(small)
    assert taken(pool, max_mapping()) == BASE


def test_no_mapping_reaches_over_a_set() -> None:
    """What does not fit before the end of a set goes to the next one."""
    pool = Pool(BASE, 2 * SET)
    taken(pool, (SET - 1) * SLOT)
    assert taken(pool, 2 * SLOT) == BASE + SET * SLOT
    assert taken(pool, 1) == BASE + (SET + 2) * SLOT
    assert pool.take(ORIG, SET * SLOT) is None


@pytest.mark.parametrize("mask", [0, 511, 2047, 4095])
def test_low_address_bits_are_kept(mask: int) -> None:
    """A mapping and what it stands for agree in the bits the device cares for."""
    pool = Pool(BASE, 1024, min_align_mask=mask)
    for orig in (0x1000, 0x1801, 0x2A37, 0x3FFF):
        assert taken(pool, 3000, orig) & mask == orig & mask
    # The offset costs a slot when the end goes over one more.
    assert Pool(BASE, SET, min_align_mask=4095).take(0x1FF, SLOT) == BASE + 0x1FF


def test_areas_belong_to_cpus() -> None:
    """Each CPU starts in its own area and goes to others when that is full."""
    pool = Pool(BASE, 4 * SET, areas=4)
    starts = [taken(pool, 1, cpu=cpu) for cpu in range(5)]
    area = SET * SLOT
    assert starts == [BASE, BASE + area, BASE + 2 * area, BASE + 3 * area, BASE + SLOT]
    assert taken(pool, 126 * SLOT, cpu=1) == BASE + area + PAGE
    assert taken(pool, SLOT, cpu=1) == BASE + area + SLOT
    assert taken(pool, SLOT, cpu=1) == BASE + 2 * area + SLOT


def test_freed_slots_merge_within_their_set() -> None:
    """Neighbours that are free form one run again, but never over the end of a set."""
    pool = Pool(BASE, 2 * SET)
    addresses = [taken(pool, SLOT) for _ in range(2 * SET)]
    assert pool.take(ORIG, 1) is None
    random.Random(1).shuffle(addresses)
    for address in addresses:
        assert len(pool.give_back(address)) == 1
    assert pool.used == 0
    assert pool._free == Pool(BASE, 2 * SET)._free


def test_random_use_agrees_with_a_model() -> None:
    """Runs never overlap, counts of free slots stay right, and everything comes back."""
    rng = random.Random(7)
    pool = Pool(BASE, 8 * SET, areas=2)
    live: dict[int, int] = {}
    for _ in range(600):
        if live and rng.random() < 0.45:
            address = rng.choice(list(live))
            run = pool.give_back(address)
            assert (len(run), BASE + run.start * SLOT) == (-(-live.pop(address) // SLOT), address)
        else:
            size = rng.choice([1, 16, 512, 4096, 65536, 200_000])
            at = pool.take(rng.randrange(1 << 30), size, cpu=rng.randrange(4))
            if at is not None:
                live[at] = size
        used = {
            (at - BASE) // SLOT + i for at, size in live.items() for i in range(-(-size // SLOT))
        }
        assert pool.used == len(used) == sum(-(-size // SLOT) for size in live.values())
        assert {i for i, free in enumerate(pool._free) if not free} == used
    for address in live:
        pool.give_back(address)
    assert pool._free == Pool(BASE, 8 * SET)._free


def test_a_pool_of_the_exact_size() -> None:
    """A transient pool need not be whole sets."""
    pool = Pool(BASE, 3)
    assert taken(pool, 3 * SLOT) == BASE
    pool.give_back(BASE)
    assert pool._free == [3, 2, 1]


@pytest.mark.parametrize(
    ("start", "nslabs", "areas"), [(BASE, 128, 3), (BASE, 128, 2), (BASE + 1, 128, 1), (BASE, 0, 1)]
)
def test_impossible_pools_are_refused(start: int, nslabs: int, areas: int) -> None:
    """Areas are a power of two and whole sets, a pool begins on a page and has a slot."""
    with pytest.raises(GuestError):
        Pool(start, nslabs, areas=areas)
