import hashlib
from pathlib import Path

import pytest
import running
from guest_boot import scenarios, tools
from guest_boot.images import file_in

from vhostblk.cli.guest_vm import Machine, Vm

pytestmark = pytest.mark.guest

MIB = 1 << 20
DISK_SIZE = 64 * MIB
BOOT_TIMEOUT_S = 90.0


def test_qemu_listens_and_comes_back(tmp_path: Path) -> None:
    """
    A QEMU with server=on is served as soon as it listens, and so is the next one on that socket.

    Spec: vhost-user, "Communication": either may be the one that listens.
    """
    image, path = tmp_path / "image", tmp_path / "s"
    image.touch()
    with image.open("r+b") as file:
        file.truncate(DISK_SIZE)
    words = ("-m", "vhostblk", "serve", "--connect", path, "--num-queues", "2", image)
    server = running.start(*words, cwd=tmp_path)
    try:
        machine = Machine(path, queues=2, listens=True)
        for _ in range(2):
            with Vm(tools(), machine, scenarios.FILE_SYSTEM, tmp_path) as vm:
                said = vm.wait(BOOT_TIMEOUT_S)
            for cpu in range(2):
                digest = hashlib.sha256(file_in(image, f"/file{cpu}")).hexdigest()
                assert digest == said[f"file{cpu}"]
            with image.open("r+b") as file:
                file.write(bytes(MIB))  # else mke2fs asks whether it may
        log = running.end(server)
    finally:
        server.kill()
        server.communicate()
    # Once more where a QEMU that ends has hung up but still listens for a moment.
    assert log.count(f"s: connected to {path}") >= 2
    assert "WARNING" not in log
