import errno
import hashlib
import os
import random
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from guest_boot import scenarios, servers, tools
from guest_boot.images import file_in
from guest_boot.servers import Disk

from vhostblk.cli import guest_demo, initramfs, qmp
from vhostblk.cli.guest_vm import Machine, Vm

pytestmark = pytest.mark.guest

MIB = 1 << 20
DISK_SIZE = 64 * MIB
BOOT_TIMEOUT_S = 90.0
SERIAL = "real-guest-0001"

Serve = Callable[[Disk, Path], AbstractContextManager[Path]]


@pytest.fixture(
    params=[
        pytest.param(servers.vhostblk, id="vhostblk"),
        pytest.param(servers.qemu_storage_daemon, id="qemu-storage-daemon", marks=pytest.mark.slow),
    ]
)
def serve(request: pytest.FixtureRequest) -> Serve:
    """Return who serves the disk: the scenarios are themselves tested on QEMU's back-end."""
    chosen: Serve = request.param
    return chosen


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an empty image file."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(DISK_SIZE)
    return path


def run(serve: Serve, disk: Disk, script: str, directory: Path) -> dict[str, str]:
    """Boot a guest on *disk* and return what it said."""
    with (
        serve(disk, directory) as socket,
        Vm(tools(), Machine(socket, queues=disk.queues), script, directory) as vm,
    ):
        return vm.wait(BOOT_TIMEOUT_S)


def sha256(data: bytes | bytearray) -> str:
    """Return the digest as the guest's sha256sum prints it."""
    return hashlib.sha256(data).hexdigest()


def is_hole(path: Path, offset: int, length: int) -> bool:
    """Say whether the file has nothing allocated there."""
    with path.open("rb") as file:
        try:
            return os.lseek(file.fileno(), offset, os.SEEK_DATA) >= offset + length
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the file's end
                return True
            raise


@pytest.mark.parametrize("queues", [1, 4])
def test_guest_formats_writes_and_verifies(
    serve: Serve, image: Path, tmp_path: Path, queues: int
) -> None:
    """
    A guest's file system survives on the disk, byte for byte, through one queue and through four.

    What the guest wrote from each CPU is read back by the guest past its caches, and here from
    the image file by a program that never saw the device.
    """
    disk = Disk(image, queues=queues, serial=SERIAL)

    said = run(serve, disk, scenarios.FILE_SYSTEM, tmp_path)

    assert int(said["sectors"]) * 512 == DISK_SIZE
    assert int(said["queues"]) == queues
    for cpu in range(queues):
        assert sha256(file_in(image, f"/file{cpu}")) == said[f"file{cpu}"]
    interrupts = [int(count) for count in said["interrupts"].split()]
    assert len(interrupts) == queues
    assert min(interrupts) > 0
    if serve is not servers.qemu_storage_daemon:
        assert said["serial"] == SERIAL
        assert said["cache"] == "write back"


def test_guest_discards_and_writes_zeroes(serve: Serve, image: Path, tmp_path: Path) -> None:
    """
    Discard and unmapping write-zeroes leave holes in the image, write-zeroes leaves zeroes.

    Spec: virtio 1.3, 5.2.6.
    """
    before = bytes(range(1, 256)) * (8 * MIB // 255 + 1)
    image.write_bytes(before[: 8 * MIB].ljust(DISK_SIZE, b"\xaa"))
    expected = bytearray(image.read_bytes())
    for offset, length in (scenarios.DISCARDED, scenarios.PUNCHED, scenarios.ZEROED):
        expected[offset : offset + length] = bytes(length)

    said = run(serve, Disk(image), scenarios.DISCARD, tmp_path)

    assert int(said["discard_max"]) > 0
    assert int(said["write_zeroes_max"]) > 0
    assert int(said["discards"]) == 1
    assert image.read_bytes() == expected
    assert said["read_back"] == sha256(expected[: 8 * MIB])
    assert is_hole(image, *scenarios.DISCARDED)
    assert is_hole(image, *scenarios.PUNCHED)


def test_guest_cannot_write_a_read_only_disk(serve: Serve, image: Path, tmp_path: Path) -> None:
    """
    A read-only disk says so, refuses the guest's write, and still serves its file system.

    Spec: virtio 1.3, 5.2.5.1 (VIRTIO_BLK_F_RO).
    """
    content = tmp_path / "content"
    content.mkdir()
    (content / "greeting").write_text("read only\n")
    make_file_system(image, content)
    before = image.read_bytes()

    said = run(serve, Disk(image, read_only=True), scenarios.READ_ONLY, tmp_path)

    assert said["read_only"] == "1"
    assert "not permitted" in said["refused"]
    assert said["start"] == sha256(before[:MIB])
    assert said["content"] == "read only"
    assert image.read_bytes() == before


def test_guest_reset_and_boots_again(serve: Serve, image: Path, tmp_path: Path) -> None:
    """
    A reset in the middle of I/O leaves what was flushed, and the same server boots the guest again.

    Spec: vhost-user, "Ring states"; virtio 1.3, 2.4.
    """
    machine_of = Disk(image, queues=2)
    with serve(machine_of, tmp_path) as socket:
        machine = Machine(socket, queues=2, reboots=True)
        with Vm(tools(), machine, scenarios.RESET, tmp_path) as vm:
            assert vm.wait_for("boot", BOOT_TIMEOUT_S) == "first"
            vm.reset()
            assert vm.wait_for("boot", BOOT_TIMEOUT_S) == "second"
            vm.wait(BOOT_TIMEOUT_S)
            first, second = [value for name, value in vm.said() if name == "sum"]

    assert first == second
    assert sha256(image.read_bytes()[MIB : 5 * MIB]) == first


@pytest.mark.slow
def test_guest_is_killed_and_the_next_one_boots(serve: Serve, image: Path, tmp_path: Path) -> None:
    """
    A QEMU that dies with requests in flight costs the server nothing: the next guest formats.

    Spec: vhost-user, "Ring states": a lost connection stops every ring.
    """
    with serve(Disk(image, queues=2), tmp_path) as socket:
        machine = Machine(socket, queues=2)
        with Vm(tools(), machine, scenarios.BUSY, tmp_path) as vm:
            vm.wait_for("busy", BOOT_TIMEOUT_S)
        with Vm(tools(), machine, scenarios.FILE_SYSTEM, tmp_path) as vm:
            said = vm.wait(BOOT_TIMEOUT_S)

    assert sha256(file_in(image, "/file1")) == said["file1"]


@pytest.mark.slow
def test_guest_uses_memory_added_while_it_runs(serve: Serve, image: Path, tmp_path: Path) -> None:
    """
    Memory plugged into a guest that does I/O is as good for requests as the first.

    Spec: vhost-user, "ADD_MEM_REG".
    """
    data = random.Random(1).randbytes(scenarios.COPY_LENGTH // 2) * 2
    image.write_bytes(data + bytes(scenarios.COPY_LENGTH))
    slots = ("-m", "slots=1,maxmem=1G")
    with serve(Disk(image, queues=2), tmp_path) as socket:
        machine = Machine(socket, queues=2, arguments=slots)
        with Vm(tools(), machine, scenarios.MORE_MEMORY, tmp_path) as vm:
            vm.wait_for("plug", BOOT_TIMEOUT_S)
            memory = {"qom_type": "memory-backend-memfd", "size": 256 * MIB, "share": True}
            qmp.run(vm.monitor, "object-add", id="more", **memory)
            qmp.run(vm.monitor, "device_add", driver="pc-dimm", id="dimm", memdev="more")
            vm.wait(BOOT_TIMEOUT_S)

    assert image.read_bytes() == data * 2


def test_demo_tells_every_step(serve: Serve, image: Path, tmp_path: Path) -> None:
    """The demonstration's guest does all it announces, and a person sees each step as it comes."""
    told: list[str] = []

    with serve(Disk(image, queues=2), tmp_path) as socket:
        outcome = guest_demo.run(
            tools(), socket, queues=2, timeout_s=BOOT_TIMEOUT_S, tell=told.append
        )

    assert outcome.said["queues"] == "2"
    assert [line.split()[1] for line in told] == [
        *("boots", "found", "drives", "formatted", "wrote", "dropped", "unmounted;", "powered")
    ]


def make_file_system(image: Path, content: Path) -> None:
    """Make an ext4 of a directory in the image, without mounting anything."""
    mke2fs = initramfs.find_program("mke2fs")
    subprocess.run([str(mke2fs), "-q", "-F", "-t", "ext4", "-d", content, image], check=True)
