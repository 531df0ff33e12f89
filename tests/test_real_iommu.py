"""Real guests whose disk is behind an IOMMU: Intel's or virtio's, translating or not."""

from pathlib import Path

import pytest
from guest_boot import platforms, scenarios
from guest_boot.platforms import BOUNCED_SEGMENT, VIRTIO_IOMMU, Outcome

pytestmark = pytest.mark.guest

PLAIN_SEGMENT = 4 << 20
HANDOVER = "[DMA Read"
"""QEMU reads the firmware's used ring when Linux has taken its mapping away; not our doing."""
REBIND = f"""\
for time in 1 2 3; do
    dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null
    echo virtio0 > /sys/bus/virtio/drivers/virtio_blk/unbind
    echo virtio0 > /sys/bus/virtio/drivers/virtio_blk/bind
done
{scenarios.FILE_SYSTEM}
"""
"""Stop and start the driver: the next start uses the same IOVAs for other pages."""


def behind(outcome: Outcome, *, bounced: bool = False) -> None:
    """Check that a guest's disk was behind an IOMMU and did not ask it for anything wrong."""
    assert outcome.translated
    assert outcome.count("misses") > 0
    assert [outcome.count(name) for name in ("denied", "expired", "late")] == [0, 0, 0]
    status = outcome.status
    assert (status["guest_dma"], status["translation"]) == ("iommu", "iotlb")
    assert status["iotlb_hits"] > 0
    assert status["iotlb_misses"] <= outcome.count("misses")
    assert (status["segments_max_bytes"] <= BOUNCED_SEGMENT) or not bounced
    assert outcome.said["faults"].count("DMAR:") == outcome.said["faults"].count(HANDOVER)
    assert int(outcome.said["segment"]) == (BOUNCED_SEGMENT if bounced else PLAIN_SEGMENT)
    assert bool(int(outcome.said["slots"] or 0)) is bounced


def test_guest_behind_intel_iommu_with_ats(tmp_path: Path) -> None:
    """Rings and buffers by IOVA; what the guest unmaps is invalidated at once, by its pages."""
    outcome = platforms.boot(tmp_path, platforms.intel(ats=True))
    behind(outcome)
    assert outcome.said["iommus"] == "dmar0"
    assert outcome.said["group"] == "DMA"
    sizes = [one.size for one in outcome.invalidations()]
    assert len(sizes) > 100
    assert max(sizes) < platforms.DISK_SIZE


def test_guest_behind_intel_iommu_with_global_flushes(tmp_path: Path) -> None:
    """
    Without ATS everything is invalidated, again and again, under load.

    Source: CONFIDENTIAL.md, 3.4: in two halves, the second of which ends at 2 to the 64.
    """
    outcome = platforms.boot(tmp_path, platforms.intel(ats=False))
    behind(outcome)
    assert outcome.said["group"] == "DMA-FQ"
    halves = list(outcome.invalidations())
    assert len(halves) > 10
    assert all(one.size >= 1 << 30 for one in halves)
    assert any(one.iova + one.size == 1 << 64 for one in halves)


@pytest.mark.parametrize(
    ("options", "group"),
    [
        pytest.param("intel_iommu=on iommu=pt", "identity", id="pt"),
        pytest.param("intel_iommu=off", "", id="off", marks=pytest.mark.slow),
    ],
)
def test_guest_in_passthrough(tmp_path: Path, options: str, group: str) -> None:
    """Every address translates to itself, but still only the front-end says so."""
    outcome = platforms.boot(tmp_path, platforms.intel(ats=True, kernel_options=options))
    behind(outcome)
    assert outcome.said["group"] == group
    assert not list(outcome.invalidations())


def test_guest_behind_virtio_iommu(tmp_path: Path) -> None:
    """The IOMMU is a virtio device itself, and flushes lazily."""
    platforms.need_module("virtio_iommu")
    outcome = platforms.boot(tmp_path, VIRTIO_IOMMU)
    behind(outcome)
    assert outcome.said["iommus"].startswith("0000:")
    assert outcome.said["group"] == "DMA-FQ"
    assert len(list(outcome.invalidations())) > 10


def test_guest_behind_an_iommu_bounces(tmp_path: Path) -> None:
    """Both at once."""
    options = "intel_iommu=on iommu=pt swiotlb=force"
    outcome = platforms.boot(tmp_path, platforms.intel(ats=True, kernel_options=options))
    behind(outcome, bounced=True)
    assert int(outcome.said["slots_used"]) == 0
    assert outcome.slots_high > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["intel", "virtio"])
def test_driver_is_bound_again_behind_an_iommu(tmp_path: Path, kind: str) -> None:
    """
    Nothing of one start is believed at the next: QEMU does not say what was unmapped between.

    Source: traces/README.md, 8.
    """
    machine = platforms.intel(ats=True)
    script = REBIND
    if kind == "virtio":
        platforms.need_module("virtio_iommu")
        machine, script = VIRTIO_IOMMU, REBIND.replace("virtio0", "virtio1")
    outcome = platforms.boot(tmp_path, machine, script)
    behind(outcome)
    assert outcome.log.count("addresses go through the guest's IOMMU") >= 4
