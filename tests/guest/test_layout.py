import itertools

from vhostblk.guest import Region, pc_layout, slots_layout
from vhostblk.guest.layout import MIB


def test_pc_layout_leaves_the_device_hole() -> None:
    """RAM lies at 0 and at 4 GiB."""
    assert pc_layout(MIB, 2 * MIB) == [Region(0, MIB), Region(1 << 32, 2 * MIB)]


def test_slots_layout_touches_or_leaves_gaps() -> None:
    """Equal regions, one behind the other or apart."""
    touching = slots_layout(3, MIB, base=MIB)
    assert [region.gpa for region in touching] == [MIB, 2 * MIB, 3 * MIB]
    assert all(a.end == b.gpa for a, b in itertools.pairwise(touching))
    apart = slots_layout(2, MIB, gap=MIB, base=0)
    assert [(region.gpa, region.end) for region in apart] == [(0, MIB), (2 * MIB, 3 * MIB)]
