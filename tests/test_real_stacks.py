"""A real guest whose disk is behind layers of the core and of Python in turns."""

import hashlib
from pathlib import Path

import pytest
from guest_boot import images, scenarios, tools
from guest_boot.restarts import Server

from vhostblk.cli.guest_vm import Machine, Vm

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MIB = 1 << 20
SIZE = 64 * MIB
TIMEOUT_S = 90.0
STACK = f"""
from vhostblk.disk.file import CacheMode, File
from vhostblk.disk.layer import Layer
from vhostblk.disk.offset import Offset


class Stack(Layer):
    '''In Python: this one, and one in the middle; in C: two parts of the file, and that.'''

    def __init__(self, path, cache):
        file = File(path, cache=CacheMode(cache))
        inner = Offset(file, start={MIB}, size={SIZE - MIB})
        super().__init__(Offset(Layer(inner), start={MIB}, size={SIZE - 2 * MIB}))
"""


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_file_system_on_a_stack_of_both_kinds(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that a guest writes and reads are in the image, where the layers put it."""
    image, part = tmp_path / "image", tmp_path / "part"
    with image.open("wb") as file:
        file.write(b"\xff" * SIZE)
    (tmp_path / "stacked.py").write_text(STACK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    disk = f"python:stacked:Stack,path={image},cache={cache}"
    machine = Machine(tmp_path / "s", queues=2)
    server = Server(tmp_path / "s", disk, tmp_path / "log", ("--num-queues", "2"))
    vm = Vm(tools(), machine, scenarios.FILE_SYSTEM, tmp_path)
    with server, vm:
        said = vm.wait(TIMEOUT_S)
        server.stop()
    data = image.read_bytes()
    assert data[: 2 * MIB] == b"\xff" * 2 * MIB
    part.write_bytes(data[2 * MIB :])
    assert int(said["sectors"]) * 512 == SIZE - 2 * MIB
    for name in ("file0", "file1"):
        assert hashlib.sha256(images.file_in(part, f"/{name}")).hexdigest() == said[name]
