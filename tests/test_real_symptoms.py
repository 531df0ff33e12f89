"""Real guests that are set up badly: what our log says of them."""

import re
import time
from pathlib import Path

import pytest
from guest_boot import servers, tools
from guest_boot.servers import Disk

from vhostblk.cli.guest_vm import Machine, Vm

pytestmark = pytest.mark.guest

WAIT_S = 60.0
MEMORY_MIB = 256
UNSHARED = (
    *("-object", f"memory-backend-memfd,id=unshared,size={MEMORY_MIB}M,share=off"),
    *("-machine", "memory-backend=unshared"),
)


def wait_for(log: Path, pattern: str) -> str:
    """Return what of the log matches, once it is there."""
    deadline = time.monotonic() + WAIT_S
    while (found := re.search(pattern, log.read_text())) is None:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found[0]


def test_guest_memory_that_is_not_shared(tmp_path: Path) -> None:
    """
    With share=off the firmware asks once and waits for ever; one line says why.

    Two kicks are all that ever come, the firmware's and one of QEMU's own, which is not counted.
    """
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    with servers.vhostblk(Disk(image), tmp_path) as socket:
        machine = Machine(socket, memory_mib=MEMORY_MIB, arguments=UNSHARED)
        with Vm(tools(), machine, "exit 0", tmp_path):
            hint = wait_for(tmp_path / "server.log", r"queue 0: kicked 1 time, but its ring.*")
    assert "RAM lacks share=on" in hint


@pytest.mark.slow
def test_queues_that_nobody_uses(tmp_path: Path) -> None:
    """QEMU kicks every queue at each start; those that a guest does not use are no symptom."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    with (
        servers.vhostblk(Disk(image, queues=4), tmp_path) as socket,
        Vm(tools(), Machine(socket, queues=4), "sleep 8", tmp_path) as vm,
    ):
        vm.wait(WAIT_S)
    assert "See docs" not in (tmp_path / "server.log").read_text()
