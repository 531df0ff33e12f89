"""A real guest under load in its life: paused, reset, its disk plugged in and pulled out."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from guest_boot import migrating, scenarios, verified
from guest_boot.restarts import Server
from guest_boot.verified import NEW, QEMUS, RINGS, Maker, Qemu

from vhostblk.cli import qmp, rpc
from vhostblk.cli.guest_vm import Vm
from vhostblk.errors import VhostBlkError

pytestmark = pytest.mark.guest

MIB = 1 << 20
BOOT_TIMEOUT_S = 90.0
PAUSES = 5


@contextmanager
def served(directory: Path, *options: str) -> Iterator[tuple[Server, Path]]:
    """Serve an empty image with two queues; it ends cleanly, or the test fails."""
    image = verified.image_in(directory)
    log = directory / "server.log"
    with Server(directory / "s", image, log, ("--num-queues", "2", *options)) as server:
        yield server, image
        server.stop()


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("qemu", QEMUS)
def test_guest_is_paused_and_goes_on(tmp_path: Path, qemu: Qemu, ring: str) -> None:
    """
    Paused in the middle of its requests, a guest finds all of them done or still to be done.

    Spec: vhost-user, "VHOST_USER_GET_VRING_BASE".
    """
    with served(tmp_path) as (server, image):
        maker = Maker(qemu, tmp_path, ring)
        with maker.vm(server.socket, tmp_path) as vm:
            verified.wait_for_beats(vm)
            for _ in range(PAUSES):
                qmp.run(vm.monitor, "stop")
                qmp.run(vm.monitor, "cont")
                verified.wait_for_beats(vm, 1)
            verified.end(vm, image)
        verified.check_ring(server.log, ring)


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("qemu", QEMUS)
def test_guest_is_reset_in_the_middle_of_its_writes(tmp_path: Path, qemu: Qemu, ring: str) -> None:
    """
    After a reset the next boot finds every block whole, and goes on from there.

    Spec: vhost-user, "VHOST_USER_RESET_DEVICE", "VHOST_USER_SET_STATUS".
    """
    with served(tmp_path) as (server, image):
        maker = Maker(qemu, tmp_path, ring)
        with maker.vm(server.socket, tmp_path, reboots=True) as vm:
            verified.wait_for_beats(vm)
            vm.reset()
            verified.wait_for_beats(vm, 4)
            verified.end(vm, image)
        verified.check_ring(server.log, ring)


@pytest.mark.slow
def test_disk_is_plugged_into_a_running_guest_and_pulled(tmp_path: Path) -> None:
    """
    A disk comes and goes twice under one guest and one server; what was written is found again.

    device_del asks the guest, which gives the slot up some seconds later.
    """
    (tmp_path / "second").mkdir()
    with served(tmp_path) as (first, _), served(tmp_path / "second") as (second, image):
        script = scenarios.plugged(verified.script(device="/dev/vdb"))
        bay = ("-device", "pcie-root-port,id=bay,chassis=1")
        guest = Maker(NEW, tmp_path).vm(first.socket, tmp_path, text=script, arguments=bay)
        with guest as vm:
            vm.wait_for("ready", BOOT_TIMEOUT_S)
            plug(vm, second.socket)
            verified.wait_for_beats(vm)
            verified.stop(image)
            table = vm.wait_for("table", BOOT_TIMEOUT_S)
            pull(vm)
            vm.wait_for("gone", BOOT_TIMEOUT_S)
            plug(vm, second.socket)
            said = vm.wait(BOOT_TIMEOUT_S)

    assert table == verified.digest(image)
    assert said["sum"] == hashlib.sha256(image.read_bytes()).hexdigest()


def plug(vm: Vm, socket: Path) -> None:
    """Give a running guest one more disk."""
    address = {"type": "unix", "data": {"path": str(socket)}}
    backend = {"type": "socket", "data": {"addr": address, "server": False}}
    qmp.run(vm.monitor, "chardev-add", id="more", backend=backend)
    device = {"driver": "vhost-user-blk-pci", "bus": "bay", "id": "plugged"}
    qmp.run(vm.monitor, "device_add", **device, **{"chardev": "more", "num-queues": 2})


def pull(vm: Vm) -> None:
    """Take it away, and wait until QEMU has let go of its socket."""
    qmp.run(vm.monitor, "device_del", id="plugged")

    def gone() -> bool:
        try:
            qmp.run(vm.monitor, "chardev-remove", id="more")
        except VhostBlkError:  # "Chardev 'more' is busy"
            return False
        return True

    migrating.until(gone)


@pytest.mark.parametrize("ring", RINGS)
def test_guest_sees_its_disk_grow_and_shrink(tmp_path: Path, ring: str) -> None:
    """
    A guest under load is told of each new size, and reads it: blockdev --getsize64.

    It grows and shrinks behind what the guest writes, so everything is verified all the while.

    Spec: vhost-user, "VHOST_USER_BACKEND_CONFIG_CHANGE_MSG".
    """
    sizes = [verified.DISK_SIZE + grown * MIB for grown in (16, 4, 64)]
    control = tmp_path / "c"
    with served(tmp_path, "--control", str(control)) as (server, image):
        text = scenarios.watched(verified.script())
        with Maker(NEW, tmp_path, ring).vm(server.socket, tmp_path, text=text) as vm:
            verified.wait_for_beats(vm)
            for size in sizes:
                rpc.call(control, "resize", {"device": "s", "size": size}, seconds=30)
                assert int(vm.wait_for("bytes", BOOT_TIMEOUT_S)) == size
                verified.wait_for_beats(vm)
            verified.end(vm, image)
    assert image.stat().st_size == sizes[-1]
