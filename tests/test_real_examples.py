"""A real guest on the disks of docs/examples that keep what it writes in a file."""

import hashlib
from pathlib import Path

import pytest
from guest_boot import images, scenarios, tools
from guest_boot.restarts import Server

from vhostblk.cli.guest_vm import Machine, Vm
from vhostblk.disk.call import Calls
from vhostblk.disk.make import make

pytestmark = [pytest.mark.guest, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[1] / "docs/examples"
MIB = 1 << 20
SIZE = 64 * MIB
TIMEOUT_S = 90.0


@pytest.mark.parametrize(
    "disk", ["python:dedup:Dedup,path={},size=64M", "python:time_travel:Versions,path={},size=64M"]
)
def test_a_file_system_on_an_example(
    disk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that a guest writes are there when the disk is opened again, by their checksums."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    text = disk.format(tmp_path / "store")
    server = Server(tmp_path / "s", text, tmp_path / "log", ("--num-queues", "2"))
    vm = Vm(tools(), Machine(tmp_path / "s", queues=2), scenarios.FILE_SYSTEM, tmp_path)
    with server, vm:
        said = vm.wait(TIMEOUT_S)
        server.stop()
    image = tmp_path / "image"
    calls = Calls(make(text))
    assert calls.open() is None
    data = bytearray(SIZE)
    with memoryview(data) as view:
        assert calls.read(0, [view]) is None
    assert calls.close() is None
    image.write_bytes(data)
    assert int(said["sectors"]) * 512 == SIZE
    for name in ("file0", "file1"):
        assert hashlib.sha256(images.file_in(image, f"/{name}")).hexdigest() == said[name]
