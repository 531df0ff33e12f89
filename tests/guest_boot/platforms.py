"""
Machines whose disk does not reach the guest's memory as it likes, and what shows that it is so.

Their buffers are bounced as in a confidential guest, or their disk is behind an IOMMU, or both.

One CPU each: QEMU 10.0's software emulation corrupts the memory of a guest with more behind a
vIOMMU, be the disk ours or QEMU's own.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from guest_boot import scenarios, servers, tools
from guest_boot.images import file_in
from guest_boot.servers import Disk
from vhostblk.cli import initramfs
from vhostblk.cli.guest_vm import Machine, Vm
from vhostblk.errors import VhostBlkError
from vhostblk.server.status import Status

MIB = 1 << 20
DISK_SIZE = 64 * MIB
BOOT_TIMEOUT_S = 90.0
PLATFORM = ("iommu_platform=on", "disable-legacy=on")
"""The properties QEMU gives every virtio device of a confidential guest."""
ACCESS_PLATFORM = 33
BOUNCED_SEGMENT = 256 << 10
"""Bytes, the most that is bounced in one piece: a set of 128 slots of 2 KiB."""
NOWHERE = Path("/nowhere")

BOUNCED = Machine(NOWHERE, device_options=PLATFORM, kernel_options="swiotlb=force iommu=soft")
"""
The way a confidential guest goes: iommu_platform without an IOMMU, every buffer bounced.

With iommu=soft the kernel says where its pool is.
"""
VIRTIO_IOMMU = Machine(
    NOWHERE,
    device_options=PLATFORM,
    platform=("-device", "virtio-iommu-pci"),
    modules=("virtio_iommu",),
)


def intel(*, ats: bool, kernel_options: str = "intel_iommu=on") -> Machine:
    """Return a machine with an Intel IOMMU; with ATS it invalidates page by page."""
    iommu = "intel-iommu,intremap=off" + (",device-iotlb=on,caching-mode=on" if ats else "")
    return Machine(
        NOWHERE,
        device_options=(*PLATFORM, *(("ats=on",) if ats else ())),
        platform=("-device", iommu),
        kernel_options=kernel_options,
    )


def need_module(name: str) -> None:
    """Skip the test where the kernel has no such module, saying what to do."""
    try:
        initramfs.module_files(tools().modules, [name])
    except VhostBlkError as error:
        pytest.skip(f"{error}: Debian has it from Linux 6.12 on, see .ci/setup")


@dataclass(frozen=True, slots=True)
class Invalidation:
    """
    A range that the front-end told us to forget.

    Args:
        iova: Its first byte.
        size: Bytes.
    """

    iova: int
    size: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What came of a boot.

    Args:
        said: What the guest said, by name.
        console: Every line of its console, QEMU's complaints among them.
        log: The server's, with every message.
    """

    said: dict[str, str]
    console: tuple[str, ...]
    log: str

    @property
    def slots_high(self) -> int:
        """Slots of 2 KiB that were in use at once; skips where an old kernel does not say."""
        if not self.said["slots_high"]:
            pytest.skip("this kernel does not say how much it bounced: run `make setup` for 6.12")
        return int(self.said["slots_high"])

    @property
    def translated(self) -> bool:
        """Whether the server went through the guest's IOMMU."""
        return "addresses go through the guest's IOMMU" in self.log

    @property
    def status(self) -> Status:
        """The status document of the last start: the system's, after any firmware."""
        found = re.findall(r" status: (\{.*\})$", self.log, re.MULTILINE)
        assert found, f"no status in {self.log[-1000:]}"
        document: Status = json.loads(found[-1])
        return document

    def count(self, name: str) -> int:
        """Return one of the server's counters of the IOMMU."""
        found = re.search(rf"IommuCounters\(.*\b{name}=(\d+)", self.log)
        assert found is not None, f"no {name} in {self.log[-1000:]}"
        return int(found[1])

    def invalidations(self) -> Iterator[Invalidation]:
        """Go through what the front-end told us to forget."""
        for found in re.finditer(r"IOTLB_MSG iova=(\w+) size=(\d+) .* kind=3\b", self.log):
            yield Invalidation(int(found[1], 16), int(found[2]))


def boot(directory: Path, machine: Machine, script: str = scenarios.FILE_SYSTEM) -> Outcome:
    """
    Boot on *machine*, and check what is left on its disk and that nobody complained.

    Args:
        directory: For the image, the sockets and the log; its path must be short.
        machine: The guest, without its socket.
        script: What it does; writes /file0 on a file system and says its checksum.
    """
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    outcome = run(directory, machine, Disk(image), script)
    assert hashlib.sha256(file_in(image, "/file0")).hexdigest() == outcome.said["file0"]
    return outcome


def run(directory: Path, machine: Machine, disk: Disk, script: str) -> Outcome:
    """Boot on *machine*, with what every such guest shows around the script."""
    around = f"{scenarios.BEFORE}\n{script}\n{scenarios.AFTER}"
    with (
        servers.vhostblk(disk, directory, "-v") as socket,
        Vm(tools(), replace(machine, socket_path=socket), around, directory) as vm,
    ):
        said = vm.wait(BOOT_TIMEOUT_S)
    outcome = Outcome(said, tuple(vm.console), (directory / "server.log").read_text())
    assert said["features"][ACCESS_PLATFORM] == "1"
    assert said["errors"] == "0"
    assert not re.search(r" (WARNING|ERROR) ", outcome.log), outcome.log
    return outcome
