"""
Real guests whose disk is behind an IOMMU, or whose buffers are bounced as in a confidential one.

One CPU each: QEMU 10.0's software emulation corrupts the memory of a guest with more behind a
vIOMMU, be the disk ours or QEMU's own.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from guest_boot import scenarios, servers, tools
from guest_boot.images import file_in
from guest_boot.servers import Disk

from vhostblk.cli.confidential import DEVICE_OPTIONS
from vhostblk.cli.guest_vm import Machine, Vm

pytestmark = pytest.mark.guest

MIB = 1 << 20
DISK_SIZE = 64 * MIB
BOOT_TIMEOUT_S = 90.0
ACCESS_PLATFORM = 33
NOWHERE = Path("/nowhere")

SCRIPT = f"""\
say features "$(cat /sys/bus/virtio/devices/virtio0/features)"
say segment "$(cat /sys/block/vda/queue/max_segment_size)"
say groups "$(ls /sys/kernel/iommu_groups | wc -l)"
{scenarios.FILE_SYSTEM}
"""
REBIND = f"""\
for time in 1 2 3; do
    dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null
    echo virtio0 > /sys/bus/virtio/drivers/virtio_blk/unbind
    echo virtio0 > /sys/bus/virtio/drivers/virtio_blk/bind
done
{SCRIPT}
"""
"""Stop and start the driver: the next start uses the same IOVAs for other pages."""


def boot(directory: Path, machine: Machine, script: str) -> dict[str, str]:
    """Boot on *machine*, and check what is left on its disk."""
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    with (
        servers.vhostblk(Disk(image, queues=machine.queues), directory) as socket,
        Vm(tools(), replace(machine, socket_path=socket), script, directory) as vm,
    ):
        said = vm.wait(BOOT_TIMEOUT_S)
    assert hashlib.sha256(file_in(image, "/file0")).hexdigest() == said["file0"]
    assert said["features"][ACCESS_PLATFORM] == "1"
    return said


def behind_intel(*, ats: bool, kernel_options: str = "intel_iommu=on") -> Machine:
    """Return a machine with an Intel IOMMU; with ATS it invalidates page by page."""
    iommu = "intel-iommu,intremap=off" + (",device-iotlb=on,caching-mode=on" if ats else "")
    return Machine(
        NOWHERE,
        device_options=(*DEVICE_OPTIONS, *(("ats=on",) if ats else ())),
        platform=("-device", iommu),
        kernel_options=kernel_options,
    )


def test_bounced_guest_formats_writes_and_verifies(tmp_path: Path) -> None:
    """
    The way a confidential guest goes: iommu_platform without an IOMMU, every buffer bounced.

    The device is the one `vhostblk qemu-args --sev` prints.
    A bounced segment has 256 KiB at most, which shows that they are.
    """
    machine = Machine(NOWHERE, device_options=DEVICE_OPTIONS, kernel_options="swiotlb=force")
    said = boot(tmp_path, machine, SCRIPT)
    assert int(said["segment"]) == 256 << 10


@pytest.mark.slow
@pytest.mark.parametrize("ats", [True, False], ids=["ats", "global-flushes"])
def test_guest_behind_intel_iommu(tmp_path: Path, ats: bool) -> None:  # noqa: FBT001 - by name
    """Rings and buffers by IOVA; what the guest unmaps is invalidated by page, or all at once."""
    said = boot(tmp_path, behind_intel(ats=ats), SCRIPT)
    assert int(said["groups"]) > 0


@pytest.mark.slow
def test_guest_in_passthrough(tmp_path: Path) -> None:
    """Every address translates to itself, but still only the front-end says so."""
    boot(tmp_path, behind_intel(ats=True, kernel_options="intel_iommu=on iommu=pt"), SCRIPT)


@pytest.mark.slow
def test_guest_behind_an_iommu_bounces(tmp_path: Path) -> None:
    """Both at once."""
    options = "intel_iommu=on iommu=pt swiotlb=force"
    said = boot(tmp_path, behind_intel(ats=True, kernel_options=options), SCRIPT)
    assert int(said["segment"]) == 256 << 10


@pytest.mark.slow
def test_driver_is_bound_again_behind_an_iommu(tmp_path: Path) -> None:
    """
    Nothing of one start is believed at the next: QEMU does not say what was unmapped between.

    Source: traces/README.md, 8.
    """
    boot(tmp_path, behind_intel(ats=True), REBIND)
