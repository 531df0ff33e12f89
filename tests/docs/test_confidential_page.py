"""
What "attach to a confidential guest" shows, run as far as it goes without the hardware.

The command lines of QEMU get an emulated CPU instead of KVM, and an empty firmware.
"""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import running
from guest_boot import tools

from vhostblk.cli import guest_vm, main

pytestmark = pytest.mark.guest

PAGE = running.ROOT / "docs/how-to/attach-to-a-confidential-guest.md"
COMMANDS = re.findall(
    r"^qemu-system-x86_64 (?:.*\\\n)*.*$",
    "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)),
    re.MULTILINE,
)
OURS = re.compile(r"\$\(vhostblk (.*?)\)")
CHECKS = re.findall(
    r"^\$ (.*)\n([^$\n]+)\n", PAGE.read_text().split("## In the guest")[1], re.MULTILINE
)
WHY = {
    "--sev": "accelerator does not support confidential guest sev-guest",
    "--sev-snp": "cannot set up private guest memory for sev-snp-guest: KVM required",
    "--tdx": (
        "cannot set up private guest memory for tdx-guest: KVM required",
        "-object tdx-guest,id=cgs0: Parameter 'qom-type' does not accept value 'tdx-guest'",
    ),
}
"""QEMU's last words, seen with 10.0 and 11.1; 10.0, the latter of two, has no TDX."""
BOOT_TIMEOUT_S = 90.0
FIRMWARE_SIZE = 4 << 20
SHOWN = '"guest_dma":"bounced"'
"""Of the status document, on the page."""
TROUBLE = (
    "requests_outside_shared_total",
    "ring_looks_encrypted_total",
    "zero_ring_kicks_total",
    "cbit_address_total",
    "guest_mem_faults_total",
)


def words(command: str, socket: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Do what the shell would: run our program, and split the line."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed (Debian: qemu-system-x86)")
    ours = OURS.search(command)
    assert ours is not None
    assert main.main(shlex.split(ours[1].replace("/run/vm0.sock", str(socket)))) == 0
    command = command.replace("\\\n", " ").replace(ours[0], capsys.readouterr().out.strip())
    return shlex.split(command)


def test_page_shows_a_line_for_each_technology() -> None:
    """The tests below have something to look at: three lines for hardware, one for everybody."""
    assert [option for option in WHY for command in COMMANDS[:3] if f"{option})" in command] == [
        *WHY
    ]
    assert len(COMMANDS) == 4
    assert len(CHECKS) == 3


@pytest.mark.parametrize(
    ("command", "why"), list(zip(COMMANDS, WHY.values(), strict=False)), ids=[*WHY]
)
def test_qemu_takes_the_line_up_to_the_hardware(
    command: str, why: str | tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """QEMU understands every word and ends where it needs the processor."""
    (tmp_path / "OVMF.fd").write_bytes(bytes(FIRMWARE_SIZE))
    socket = tmp_path / "s"
    command = command.replace("-accel kvm", "-accel tcg").replace("-cpu host", "-cpu max")
    with running.serving("--num-queues", "4", "memory:1M", socket=socket) as server:
        run = subprocess.run(
            words(command, socket, capsys),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=BOOT_TIMEOUT_S,
        )
        running.end(server)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith(why)


def test_look_alike_boots_and_answers_as_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line for everybody boots a guest, in which each check answers what the page says."""
    found = tools()
    script = "mount -t debugfs debugfs /sys/kernel/debug\n"
    script += "dd if=/dev/vda of=/dev/null bs=4k count=64 iflag=direct\n"
    script += "\n".join(f'say check{i} "$({check})"' for i, (check, _) in enumerate(CHECKS))
    (tmp_path / "vmlinuz").symlink_to(found.kernel)
    (tmp_path / "initrd.img").write_bytes(guest_vm.make_initramfs(found, script))
    socket = tmp_path / "s"
    with running.serving("memory:1M", socket=socket) as server:
        run = subprocess.run(
            words(COMMANDS[3], socket, capsys),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=BOOT_TIMEOUT_S,
        )
        log = running.end(server)
    said = dict(re.findall(r"@@ (\S+) (.*?)\r?$", run.stdout, re.MULTILINE))
    assert said == {f"check{i}": answer for i, (_, answer) in enumerate(CHECKS)} | {"exit": "0"}
    status = json.loads(log.rpartition("status: ")[2].splitlines()[0])
    assert [status[name] for name in TROUBLE] == [0] * len(TROUBLE)
    assert SHOWN in log.rpartition("status: ")[2]
    assert SHOWN in PAGE.read_text()
