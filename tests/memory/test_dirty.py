from hypothesis import given
from hypothesis import strategies as st
from memory.conftest import MakeWanted

from vhostblk.memory.dirty import PAGE, DirtyLog, LogRegion, log_bytes, log_regions, marked
from vhostblk.memory.regions import RegionTable

HIGH = 1 << 40
REGIONS = (LogRegion(0x1000, 0x800, HIGH + 0x7FF), LogRegion(0x2000, 0x3000, 0x123))
"""A hole between them; neither begins on a page, one lies beyond 2^32."""


def test_ranges_follow_the_regions() -> None:
    """A stretch over both regions and the hole has two parts, each where its region says."""
    log = DirtyLog(address=0, length=64, regions=REGIONS)
    assert log.ranges(0x1700, 0xA00) == [(HIGH + 0x7FF + 0x700, 0x100), (0x123, 0x100)]
    assert log.ranges(0x1800, 0x800) == []
    assert log.ranges(0x5000, 1) == []


@given(st.integers(0, 4 * PAGE), st.integers(0, 3 * PAGE), st.integers(1, 2))
def test_pages_agree_with_looking_at_bytes(gpa: int, length: int, log_length: int) -> None:
    """A page is marked if one of its bytes was written and the log has a bit for it."""
    log = DirtyLog(address=0, length=log_length, regions=())
    gpa += (8 * log_length - 3) * PAGE
    expected = {at // PAGE for at in range(gpa, gpa + length)}
    assert log.pages([(gpa, length)]) == {page for page in expected if page < 8 * log_length}


@given(st.sets(st.integers(0, 255)))
def test_marked_reads_what_was_set(pages: set[int]) -> None:
    """
    Bit page % 8 of byte page / 8.

    Spec: vhost-user, "Migration".
    """
    assert marked(sum(1 << page for page in pages).to_bytes(32, "little")) == pages


def test_log_of_a_table_is_sorted_by_host(wanted: MakeWanted) -> None:
    """Whatever order memory came in, and the log covers the last page of the highest region."""
    wants = [wanted(at << 20, 2, offset=at * PAGE) for at in (7, 3, 5)]
    change = RegionTable().replace(wants)
    try:
        regions = log_regions(change.table)
        assert [region.host for region in regions] == sorted(region.host for region in regions)
        assert {region.gpa for region in regions} == {at << 20 for at in (3, 5, 7)}
        assert log_bytes(change.table) == ((7 << 20) // PAGE + 2 + 7) // 8
    finally:
        for region in change.added:
            region.mapping.release()
    assert log_bytes(RegionTable()) == 0
