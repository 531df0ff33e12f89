"""A real guest whose disk is behind layers, which are changed under it while it writes."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from guest_boot import images, scenarios, tools
from guest_boot.operators import Operator
from guest_boot.restarts import Server

from vhostblk.cli.guest_vm import Machine, Vm

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MIB = 1 << 20
SIZE = 64 * MIB
TIMEOUT_S = 90.0


def check(image: Path, said: Mapping[str, str]) -> None:
    """Find in the image, by itself, the very files that the guest has written and read."""
    written = images.file_in(image, "/written")
    assert hashlib.sha256(written).hexdigest() == said["written"]
    lines = [line.split() for line in written.decode().splitlines()]
    assert len(lines) > len("zero")
    for digest, name in lines:
        assert hashlib.sha256(images.file_in(image, f"/{name}")).hexdigest() == digest


def hold_and_let_go(operator: Operator, image: Path) -> None:
    """Hold flushes, and then writes of another stack; the guest goes on behind both."""
    operator.ask("layer", layer="pause", set={"ops": "flush"}, do="pause")
    operator.until(lambda: bool(operator.settings("pause")["held"]))
    operator.ask("layer", layer="pause", do="resume")
    operator.beats()

    operator.ask("layer", layer="zeroes", set={"unmap": False})
    operator.ask("replace", disk=f"zeroes|pause:ops=write|zeroes|file:{image},cache=none")
    operator.beats()
    operator.ask("layer", layer="pause", do="pause")
    operator.until(lambda: bool(operator.settings("pause")["held"]))
    operator.ask("layer", layer="pause", set={"paused": "off"})
    operator.beats()


def keep_and_commit(operator: Operator, image: Path) -> None:
    """Keep what it writes beside the image, and bring it there twice while it writes on."""
    operator.ask("replace", disk=f"stats|delay:flush=5ms|pause|cow|stats|{image}")
    operator.beats()
    assert operator.settings("stats:1")["write requests"]
    assert "write requests" not in operator.settings("stats:2")
    operator.ask("layer", layer="delay", set={"all": "0"})
    kept = image.read_bytes()
    operator.beats()
    assert image.read_bytes() == kept
    operator.ask("layer", layer="cow", do="commit")
    assert image.read_bytes() != kept
    assert operator.settings("stats:2")["write requests"]
    operator.beats(1)
    operator.ask("replace", disk=str(image), layer="cow", do="commit")
    operator.beats()


def test_layers_are_changed_under_a_guest_that_writes(tmp_path: Path) -> None:
    """
    Held and let go, set otherwise, replaced and taken away: its files are what it wrote.

    What is kept beside the image is brought to it while the guest writes on.  Zeroes are holes in
    the image as long as somebody looks for them.
    """
    image, control = tmp_path / "image", tmp_path / "c"
    with image.open("wb") as file:
        file.write(b"\xff" * SIZE)
    options = ("--control", str(control), "--num-queues", "2")
    machine = Machine(tmp_path / "s", queues=2)
    server = Server(tmp_path / "s", f"pause|zeroes:unmap=on|{image}", tmp_path / "log", options)
    vm = Vm(tools(), machine, scenarios.KEEP_WRITING, tmp_path)
    with server, vm:
        operator = Operator(control, vm)
        operator.beats()
        assert operator.settings("zeroes")["zero_bytes"]
        assert image.stat().st_blocks * 512 < SIZE

        hold_and_let_go(operator, image)
        keep_and_commit(operator, image)
        operator.ask("replace", disk=f"zeroes|{image}")
        operator.beats(1)

        operator.ask("resize", size=SIZE + MIB)
        said = vm.wait(TIMEOUT_S)
        server.stop()
    check(image, said)
