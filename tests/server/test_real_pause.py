from pathlib import Path

import pytest
from guest_boot import servers, tools
from guest_boot.servers import Disk

from vhostblk.cli import qmp
from vhostblk.cli.guest_vm import Machine, Vm
from vhostblk.engine.choose import EngineName

pytestmark = [pytest.mark.guest, pytest.mark.slow]

BOOT_TIMEOUT_S = 90.0
PAUSES = 12
SCRIPT = """\
echo "write through" > /sys/block/vda/cache_type
dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null
say begin yes
i=0
while [ $i -lt 20 ]; do
    dd if=/tmp/a of=/dev/vda bs=64k oflag=direct 2>/dev/null
    dd if=/dev/vda of=/tmp/b bs=64k count=128 iflag=direct 2>/dev/null
    cmp /tmp/a /tmp/b || say bad $i
    i=$((i+1))
done
say rounds $i
"""
"""Turn the write cache off, then write, read back and compare all the time."""


def test_a_paused_guest_goes_on_where_it_was(engine: EngineName, tmp_path: Path) -> None:
    """
    QEMU's stop and cont under I/O lose nothing, and the guest's write cache switch stays off.

    Source: PROTOCOL.md, "Traced sequence": stop ends with SET_STATUS 0, which is no reset.
    """
    image = tmp_path / "image"
    image.write_bytes(bytes(16 << 20))
    disk = Disk(image, queues=2)
    with (
        servers.vhostblk(disk, tmp_path, "-v", "--engine", engine) as socket,
        Vm(tools(), Machine(socket, queues=2), SCRIPT, tmp_path) as vm,
    ):
        vm.wait_for("begin", BOOT_TIMEOUT_S)
        for _ in range(PAUSES):
            qmp.run(vm.monitor, "stop")
            qmp.run(vm.monitor, "cont")
        said = vm.wait(BOOT_TIMEOUT_S)
    log = (tmp_path / "server.log").read_text()
    assert said["rounds"] == "20"
    assert "bad" not in said
    assert "WARNING" not in log
    assert log.count("GET_VRING_BASE index=0") >= PAUSES
    assert log.count("SET_CONFIG offset=32 flags=0 data=00") == 1
