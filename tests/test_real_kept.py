"""A real guest on layers that keep what it writes, or know what it must be."""

import asyncio
import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from guest_boot import images, scenarios, tools, verified
from guest_boot.restarts import Server
from guest_boot.verified import NEW, Maker

from vhostblk.cli import rpc
from vhostblk.cli.guest_vm import Machine, Vm
from vhostblk.disk.call import run
from vhostblk.disk.cow import Cow
from vhostblk.disk.file import File
from vhostblk.server.jsonrpc import Json

pytestmark = [pytest.mark.guest, pytest.mark.slow]

SIZE = 64 << 20
TIMEOUT_S = 120.0
KILLS = 6


def do(control: Path, layer: str, command: str) -> Json:
    """Have a layer of the device do something; return what it says."""
    ask = {"device": "s", "layer": layer, "do": command}
    answer = rpc.call(control, "layer", ask, seconds=60)
    assert isinstance(answer, Mapping)
    return answer


def check(image: Path, said: Mapping[str, str]) -> None:
    """Find the files that a guest wrote in an image."""
    for name in ("file0", "file1"):
        assert hashlib.sha256(images.file_in(image, f"/{name}")).hexdigest() == said[name]


def test_an_image_is_left_as_it_is_until_a_commit(tmp_path: Path) -> None:
    """A file system is made and used in front of a read-only image; a commit puts it there."""
    image, scratch = tmp_path / "image", tmp_path / "scratch"
    with image.open("wb") as file:
        file.write(b"\xff" * SIZE)
    disk = f"cow:scratch={scratch}|file:{image},read-only=on"
    server = Server(tmp_path / "s", disk, tmp_path / "log", ("--num-queues", "2"))
    vm = Vm(tools(), Machine(tmp_path / "s", queues=2), scenarios.FILE_SYSTEM, tmp_path)
    with server, vm:
        said = vm.wait(TIMEOUT_S)
        server.stop()
    assert image.read_bytes() == b"\xff" * SIZE

    async def commit() -> None:
        cow = Cow(File(image), scratch=scratch)
        await cow.open()
        await cow.commit()
        await run(cow.close)

    asyncio.run(commit())
    check(image, said)


@pytest.mark.parametrize(
    "layers",
    [
        "cache:size=1M",
        "cache:mode=writeback,size=2M",
        "verify:file={0}/sums",
        "verify|cache:mode=writeback,size=1M|verify",
    ],
)
def test_files_pass_through_layers(tmp_path: Path, layers: str) -> None:
    """What a guest writes is in the image when the server has ended; nothing was found wrong."""
    image, control = tmp_path / "image", tmp_path / "c"
    with image.open("wb") as file:
        file.write(b"\xff" * SIZE)
    disk = f"{layers.format(tmp_path)}|file:{image}"
    options = ("--num-queues", "2", "--control", str(control))
    server = Server(tmp_path / "s", disk, tmp_path / "log", options)
    vm = Vm(tools(), Machine(tmp_path / "s", queues=2), scenarios.FILE_SYSTEM, tmp_path)
    with server, vm:
        said = vm.wait(TIMEOUT_S)
        if layers.startswith("verify"):
            outermost = "verify:1" if layers.count("verify") > 1 else "verify"
            assert '"mismatches": 0' in json.dumps(do(control, outermost, "scrub"))
        server.stop()
    assert "expected checksum" not in server.log
    check(image, said)


@pytest.mark.timeout(300)
def test_a_kill_loses_nothing_of_what_a_scratch_file_keeps(tmp_path: Path) -> None:
    """A guest lives on while its server is killed again and again: each block is what it wrote."""
    instants = random.Random(KILLS)
    maker = Maker(NEW, tmp_path, "packed=on")
    image, control = verified.image_in(tmp_path), tmp_path / "c"
    options = ("--num-queues", str(maker.queues), "--control", str(control))
    disk = f"cow:scratch={tmp_path}/scratch,block=4K|file:{image},cache=none"
    with Server(tmp_path / "s", disk, tmp_path / "server.log", options) as server:
        with maker.vm(server.socket, tmp_path) as vm:
            verified.wait_for_beats(vm)
            for i in range(KILLS):
                server.kill()
                server.start()
                verified.wait_for_beats(vm)
                if i == KILLS // 2:
                    do(control, "cow", "commit")
                verified.pause(instants.random() * 0.2)
            verified.stop(image)
            said = vm.wait(TIMEOUT_S)
            do(control, "cow", "commit")
        server.stop()
    assert "bad" not in said, said["bad"]
    assert said["table"] == verified.digest(image)
