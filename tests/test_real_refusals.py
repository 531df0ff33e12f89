"""Set-ups that QEMU or we must refuse, and the words in which it is said."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from guest_boot import servers, tools
from guest_boot.platforms import BOUNCED
from guest_boot.servers import Disk
from guest_peers.scripted import listening, offers

from vhostblk.cli import qmp
from vhostblk.cli.guest_vm import GuestError, Machine, Vm
from vhostblk.errors import VhostBlkError
from vhostblk.spec import vhost_user as vu
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature

pytestmark = pytest.mark.guest

WAIT_S = 60.0
NO_PLATFORM = "iommu_platform=true is not supported by the device"
NO_CHANNEL = "IOMMU support requires reply-ack and backend-req protocol features"
FEATURES = vr.F_VERSION_1 | vu.VHOST_USER_F_PROTOCOL_FEATURES
PROTOCOL = ProtocolFeature.MQ | ProtocolFeature.CONFIG
CHANNEL = ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Return a small empty disk."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    return Disk(image)


def refusal(machine: Machine, directory: Path) -> str:
    """Return what QEMU says as it refuses to start, before any guest runs."""
    with Vm(tools(), machine, "true", directory) as vm, pytest.raises(GuestError) as refused:
        vm.wait(WAIT_S)
    assert "exit status 1" in str(refused.value)
    return "\n".join(vm.console)


def test_back_end_without_access_platform_is_refused(disk: Disk, tmp_path: Path) -> None:
    """QEMU's own back-end does not offer bit 33: no confidential guest starts with it."""
    with servers.qemu_storage_daemon(disk, tmp_path) as socket:
        assert NO_PLATFORM in refusal(replace(BOUNCED, socket_path=socket), tmp_path)


def test_ours_is_refused_when_told_not_to_offer_it(disk: Disk, tmp_path: Path) -> None:
    """--access-platform=off takes it away, and the server goes on for the next front-end."""
    with servers.vhostblk(disk, tmp_path, "--access-platform", "off") as socket:
        for _ in range(2):
            assert NO_PLATFORM in refusal(replace(BOUNCED, socket_path=socket), tmp_path)


@pytest.mark.parametrize("platform", ["on", "off"])
@pytest.mark.parametrize("lacks", ["REPLY_ACK", "BACKEND_REQ"])
def test_access_platform_without_its_channel_is_refused(
    tmp_path: Path, lacks: str, platform: str
) -> None:
    """Whoever offers bit 33 offers both, or serves no guest at all, a confidential one or not."""
    protocol = (PROTOCOL | CHANNEL) & ~ProtocolFeature[lacks]
    machine = replace(
        BOUNCED,
        socket_path=tmp_path / "s",
        device_options=(f"iommu_platform={platform}", "disable-legacy=on"),
    )
    with listening(machine.socket_path, offers(FEATURES | vr.F_ACCESS_PLATFORM, int(protocol))):
        assert NO_CHANNEL in refusal(machine, tmp_path)


def test_back_end_with_all_of_it_is_taken(tmp_path: Path) -> None:
    """The same back-end with nothing missing: QEMU gets as far as waiting for `cont`."""
    machine = replace(BOUNCED, socket_path=tmp_path / "s", arguments=("-S",))
    answers = offers(FEATURES | vr.F_ACCESS_PLATFORM, int(PROTOCOL | CHANNEL))
    with listening(machine.socket_path, answers) as seen:
        with Vm(tools(), machine, "true", tmp_path) as vm:
            assert status(vm) == {"status": "prelaunch", "running": False}
        assert "GET_CONFIG" in seen[-1].names


def status(vm: Vm) -> object:
    """Return what QEMU says of itself, once its monitor is there."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            return qmp.run(vm.monitor, "query-status")
        except VhostBlkError:
            assert time.monotonic() < deadline, vm.console
            time.sleep(0.02)


class Seen(Exception):  # noqa: N818 - no error: what was waited for
    """QEMU has said it."""


def test_guest_memory_without_a_descriptor(disk: Disk, tmp_path: Path) -> None:
    """
    With memory of QEMU's own there is nothing to map: both sides say so when a ring starts.

    That with share=off there is something, but the wrong thing, is test_real_symptoms.py's.
    """

    def look(line: str) -> None:
        if "vhost start failed" in line:
            raise Seen

    own = ("-machine", "q35", "-m", "256M")
    machine = Machine(tmp_path / "s", memory_mib=None, arguments=own)
    with (
        servers.vhostblk(disk, tmp_path),
        Vm(tools(), machine, "true", tmp_path, on_line=look) as vm,
        pytest.raises(Seen),
    ):
        vm.wait(WAIT_S)
    log = (tmp_path / "server.log").read_text()
    assert "no guest memory: give QEMU a memory-backend-memfd with share=on" in log
