"""
A real guest with a bounce pool, held to the pool that its own kernel log names.

Marked slow: three boots tell what the fake guest's tests tell in less; these tell that the line and
its end are what Linux prints, and that nothing else of Linux lies outside.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from guest_boot import scenarios, servers, tools
from guest_boot.images import file_in
from guest_boot.servers import Disk
from server_kit.serving import until

from vhostblk.cli.confidential import DEVICE_OPTIONS
from vhostblk.cli.guest_vm import Machine, Vm

pytestmark = [pytest.mark.guest, pytest.mark.slow]

DISK_SIZE = 64 << 20
BOOT_TIMEOUT_S = 90.0
# "iommu=soft" keeps the pool in a guest without memory above 4 GiB; KASLR moves it at each boot.
BOUNCED = Machine(
    Path("/nowhere"),
    queues=2,
    device_options=DEVICE_OPTIONS,
    kernel_options="swiotlb=force iommu=soft nokaslr",
)
SCRIPT = f"""\
say pool "$(dmesg | grep -F 'software IO TLB: mapped')"
{scenarios.FILE_SYSTEM}
"""


@contextmanager
def booted(directory: Path, machine: Machine, *options: str) -> Iterator[Vm]:
    """Boot on *machine*, with these options of `vhostblk serve`."""
    directory.mkdir()
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    with (
        servers.vhostblk(Disk(image, queues=machine.queues), directory, *options) as socket,
        Vm(tools(), replace(machine, socket_path=socket), SCRIPT, directory) as vm,
    ):
        yield vm


def boot(directory: Path, machine: Machine, *options: str) -> str:
    """Boot, check what is left on the disk, and return the line about the guest's pool."""
    with booted(directory, machine, *options) as vm:
        said = vm.wait(BOOT_TIMEOUT_S)
    assert hashlib.sha256(file_in(directory / "image", "/file0")).hexdigest() == said["file0"]
    return said["pool"]


def test_the_line_of_the_kernel_log_is_enough(tmp_path: Path) -> None:
    """
    What a guest prints of its pool is what its next boot is held to, to the last byte.

    Without a pool the same kernel's first request goes elsewhere: its queues stop.
    """
    pool = boot(tmp_path / "a", BOUNCED)
    require = ("--confidential", "require", "--on-violation", "break", "--shared-ranges", pool)
    boot(tmp_path / "b", BOUNCED, *require)
    assert "broken" not in (tmp_path / "b/server.log").read_text()
    direct = replace(BOUNCED, kernel_options="nokaslr")
    with booted(tmp_path / "c", direct, *require):
        log = tmp_path / "c/server.log"
        assert until(lambda: "is broken" in log.read_text(), BOOT_TIMEOUT_S)
    assert not (tmp_path / "c/image").read_bytes().strip(b"\0")
