import sys
from pathlib import Path

import pytest
from guest_boot import fake_qemu

from vhostblk.cli import guest_vm
from vhostblk.cli.guest_vm import GuestError, Machine, Tools, Vm
from vhostblk.errors import VhostBlkError

PYTHON = Path(sys.executable)


def vm(directory: Path, console: str) -> Vm:
    """Return a run in which "QEMU" executes *console*."""
    tools = fake_qemu.make(directory, console)
    return Vm(tools, Machine(directory / "socket"), "true", directory)


def test_find_tools_names_the_variable_to_set(tmp_path: Path) -> None:
    """A missing kernel is reported with the variable that says where it is."""
    environ = {"VHOSTBLK_QEMU": str(PYTHON), "VHOSTBLK_KERNEL": str(tmp_path / "none")}

    with pytest.raises(VhostBlkError, match="set VHOSTBLK_KERNEL"):
        guest_vm.find_tools(environ)


def test_find_tools_believes_the_environment() -> None:
    """Every part can be pointed at; nothing else is looked for then."""
    environ = {f"VHOSTBLK_{name}": "/" for name in ("QEMU", "KERNEL", "MODULES", "BUSYBOX")}

    assert guest_vm.find_tools(environ) == Tools(*[Path("/")] * 4)


def test_qemu_command_shares_memory_and_doubles_commas(tmp_path: Path) -> None:
    """Guest memory is a shared memfd, without which no back-end can serve; commas are quoted."""
    command = guest_vm.qemu_command(
        fake_qemu.make(tmp_path, ""),
        Machine(Path("/a,b"), queues=4, device_options=("packed=on",)),
        Path("/initrd"),
        Path("/m"),
    )

    assert "memory-backend-memfd,id=mem,size=256M,share=on" in command
    assert "socket,id=disk,path=/a,,b" in command
    assert "vhost-user-blk-pci,chardev=disk,num-queues=4,packed=on" in command
    assert command[command.index("-smp") + 1] == "4"


@pytest.mark.parametrize("reboots", [False, True])
def test_qemu_command_reboots_only_if_asked(tmp_path: Path, reboots: bool) -> None:  # noqa: FBT001
    """A guest that panics ends QEMU unless the caller wants to see a second boot."""
    machine = Machine(Path("/s"), reboots=reboots)

    command = guest_vm.qemu_command(
        fake_qemu.make(tmp_path, ""), machine, Path("/initrd"), Path("/m")
    )

    assert ("-no-reboot" in command) is not reboots


def test_qemu_command_leaves_the_memory_to_the_arguments(tmp_path: Path) -> None:
    """A machine without a size of memory says nothing of it, nor of the machine."""
    machine = Machine(Path("/s"), memory_mib=None, arguments=("-m", "1G"))

    command = guest_vm.qemu_command(
        fake_qemu.make(tmp_path, ""), machine, Path("/initrd"), Path("/m")
    )

    assert command.count("-m") == 1
    assert "-object" not in command
    assert "-machine" not in command


def test_make_initramfs_loads_what_the_disk_stands_behind_first(tmp_path: Path) -> None:
    """An IOMMU that is a module comes before the disk's driver, which would do without it."""
    tools = fake_qemu.make(tmp_path, "")
    (tools.modules / "modules.builtin").write_text("virtio_pci.ko\next4.ko\n")
    for name in ("virtio-iommu", "virtio_blk"):
        (tools.modules / f"{name}.ko").write_bytes(b"\x7fELF\0depends=\0")

    initramfs = guest_vm.make_initramfs(tools, "true", ["virtio_iommu"])

    assert b"insmod /modules/virtio_iommu.ko\ninsmod /modules/virtio_blk.ko\n" in initramfs


def test_wait_returns_what_the_guest_said(tmp_path: Path) -> None:
    """Marks are collected by name, the firmware's cursor movements and carriage returns aside."""
    with vm(tmp_path, r"print('\x1b[2J@@ size 7 MiB\r\nnoise\n@@ exit 0')") as guest:
        assert guest.wait(5) == {"size": "7 MiB", "exit": "0"}
        assert guest.console == ["@@ size 7 MiB", "noise", "@@ exit 0"]


@pytest.mark.parametrize("console", ["print('@@ exit 1')", "print('bye')", "exit(3)"])
def test_wait_raises_unless_the_script_succeeded(tmp_path: Path, console: str) -> None:
    """A failed script, a console that just ends and a failing QEMU are all failures."""
    with (
        vm(tmp_path, console) as guest,
        pytest.raises(GuestError, match="the guest failed"),
    ):
        guest.wait(5)


def test_wait_is_bounded(tmp_path: Path) -> None:
    """A silent guest costs the given time and no more, and QEMU does not outlive the block."""
    with (
        vm(tmp_path, "import time; time.sleep(600)") as guest,
        pytest.raises(GuestError, match="takes too long"),
    ):
        guest.wait(0.01)

    assert not Path(f"/proc/{guest.pid}").exists()


def test_wait_for_takes_one_mark_at_a_time(tmp_path: Path) -> None:
    """Two marks that arrive together are waited for one after the other; none is lost."""
    with vm(tmp_path, r"print('@@ boot 1\n@@ boot 2\n@@ exit 0')") as guest:
        assert guest.wait_for("boot", 5) == "1"
        assert guest.wait_for("boot", 5) == "2"
        assert guest.wait(5)["boot"] == "2"
        assert [value for name, value in guest.said() if name == "boot"] == ["1", "2"]


def test_wait_for_shows_the_console_when_the_guest_ends(tmp_path: Path) -> None:
    """The error carries what was on the console: that is where the cause is."""
    with (
        vm(tmp_path, "print('Kernel panic')") as guest,
        pytest.raises(GuestError, match=r"(?s)never said 'boot'.*Kernel panic"),
    ):
        guest.wait_for("boot", 5)
