import pytest

from vhostblk.errors import VhostBlkError
from vhostblk.memory.ranges import OnViolation, Ranges
from vhostblk.server.policy import (
    Confidential,
    IommuMode,
    SharedRanges,
    chosen,
    parse_shared_ranges,
)
from vhostblk.server.promise import DeviceOptions

POOL = Ranges(((0x78000000, 0x7C000000),))
SHARED = SharedRanges(ranges=POOL)
REQUIRE = Confidential.REQUIRE


@pytest.mark.parametrize(
    "text",
    [
        "0x78000000-0x7c000000",
        "0x78000000+64M",
        "0x78000000+0x4000000",
        "2013265920-2080374784",
        "1920M+64m",
        "[mem 0x78000000-0x7c000000]",
        # Linux 5.12 and later (%pa), with printk's time, as journalctl shows it, and before 5.12.
        "software IO TLB: mapped [mem 0x0000000078000000-0x000000007c000000] (64MB)",
        "[    0.061347] software IO TLB: mapped [mem 0x0000000078000000-0x000000007c000000] (64MB)",
        "Nov 23 12:00:00 vm kernel: software IO TLB: mapped [mem 0x78000000-0x7c000000] (64MB)\n",
        "software IO TLB [mem 0x78000000-0x7c000000] (64MB) mapped at [000000004d7c58b6-00000000]",
        "0x7a000000-0x7c000000,0x78000000-0x79000000,0x79000000-0x7a000000",
        " 0x78000000-0x7c000000 , ",
    ],
)
def test_one_pool_in_many_words(text: str) -> None:
    """
    All of these are the same 64 MiB; the end is the first byte behind them.

    Source: Linux, kernel/dma/swiotlb.c, swiotlb_print_info: start, start + bytes.
    """
    shared = parse_shared_ranges(text)
    assert shared == SHARED
    assert shared.ranges.size == 64 << 20


def test_what_stands_beside_ranges() -> None:
    """Slack widens each range, learn= counts requests, rings= says where rings may be."""
    shared = parse_shared_ranges("0x1000-0x2000,slack=4K,learn=64")
    assert shared == SharedRanges(ranges=Ranges(((0x1000, 0x2000),)), slack=4096, learn=64)
    limit = shared.limit(OnViolation.WARN)
    assert limit.inside.rows == ((0, 0x3000),)
    assert (limit.on_violation, limit.rings_too) == (OnViolation.WARN, False)
    assert parse_shared_ranges("0x1000+4K,rings=inside").limit(OnViolation.FAIL).rings_too
    assert not parse_shared_ranges("0x1000+4K,rings=any,firmware=any").rings_inside
    assert parse_shared_ranges("learn=32,firmware=inside").firmware_inside
    assert not parse_shared_ranges("")
    assert parse_shared_ranges("learn=32")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0x78000000", "shared range '0x78000000': write start-end, start.size or the line"),
        ("all", "shared range 'all': write start-end, start.size or the line"),
        ("-0x1000", "write start-end"),
        ("0x1000-0x2000-0x3000", "write start-end"),
        ("0x1000--0x2000", "write start-end"),
        ("0x1g00-0x2000", "write start-end"),
        ("[mem x-y]", "write start-end"),
        ("0x2000-0x1000", "'0x2000-0x1000' ends before it begins"),
        ("0x2000-0x2000", "ends before it begins"),
        ("0x2000+0", "ends before it begins"),
        ("0x1001-0x2000", "begins within a page: .* 0x1000 begins one"),
        (
            "0x78000000-0x7bffffff",
            "ends within a page: the end is the first byte behind the range, 0x7c000000",
        ),
        ("0xfffffffffffff000+8K", "ends beyond 64 bits"),
        ("slack=1,0x1000+4K", "slack=1: give a multiple of 4096 bytes"),
        ("slack=x,0x1000+4K", "slack 'x' is not a size"),
        ("slack=4K", "slack= and rings=inside need a range"),
        ("rings=inside", "slack= and rings=inside need a range"),
        ("rings=inside,learn=32,0x1000+4K", "say learn= or rings=inside"),
        ("rings=outside,0x1000+4K", "write rings=any or rings=inside"),
        ("firmware=out,0x1000+4K", "firmware=out: write firmware=any or firmware=inside"),
        ("learn=31", "learn=31: give a number of requests, 32 to 65535"),
        ("learn=65536", "learn=65536: give a number"),
        ("learn=-1", "learn=-1: give a number"),
        ("learn=", "learn=: give a number"),
        ("learn=\u0663", "give a number"),
        ("learn=32,learn=32", "learn= is given twice"),
        ("size=4K", "shared range 'size=4K': write start-end"),
        (",".join(f"{2 * i}M+1M" for i in range(65)), "65 are too many, 64 can be given"),
    ],
)
def test_what_cannot_be_read_says_what_to_write(text: str, says: str) -> None:
    """One line, with an example."""
    with pytest.raises(VhostBlkError, match=says) as caught:
        parse_shared_ranges(text)
    assert "\n" not in str(caught.value)


def test_require_needs_to_be_told_what_is_shared() -> None:
    """It is refused before anything is served, and says where to find it."""
    with pytest.raises(VhostBlkError, match=r"require needs .* dmesg .*IO TLB.*, or learn=10000"):
        DeviceOptions(confidential=REQUIRE)
    DeviceOptions(confidential=REQUIRE, shared_ranges=SHARED)
    DeviceOptions(confidential=REQUIRE, shared_ranges=SharedRanges(learn=32))


@pytest.mark.parametrize("mode", [Confidential.OFF, Confidential.AUTO])
def test_nothing_is_believed_to_be_enforced_that_is_not(mode: Confidential) -> None:
    """Ranges or a policy without require are a mistake, not silence."""
    with pytest.raises(VhostBlkError, match=f"not looked at with confidential {mode}: give"):
        DeviceOptions(confidential=mode, shared_ranges=SHARED)
    for policy in (OnViolation.WARN, OnViolation.BREAK):
        with pytest.raises(VhostBlkError, match=f"with confidential {mode} nothing is a violation"):
            DeviceOptions(confidential=mode, on_violation=policy)


def test_chosen_names_the_choices() -> None:
    """A word that is none of them is answered with those that are."""
    assert chosen(IommuMode, "iommu", "on") is IommuMode.ON
    with pytest.raises(VhostBlkError, match="iommu is off, auto, on; not 'maybe'"):
        chosen(IommuMode, "iommu", "maybe")
