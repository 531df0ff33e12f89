"""What is an operator's: devices and disks that no command line says, and the control socket."""

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from server_kit import successors
from server_kit.engine import FakeEngine
from server_kit.serving import Serving
from server_kit.taking_over import one_engine, taken_over

from vhostblk.disk.memfd import Memfd
from vhostblk.disk.null import Null
from vhostblk.engine.choose import EngineName
from vhostblk.errors import VhostBlkError
from vhostblk.guest.guest import Guest
from vhostblk.server import change
from vhostblk.server import handover as h
from vhostblk.server.courier import Courier
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.server import Server
from vhostblk.server.takeover import Takeover

Connect = Callable[..., Guest]
SIZE = 1 << 20
X, Y = b"x" * 4096, b"y" * 4096


def add(server: Serving, name: str, disk: str, **settings: object) -> Path:
    path = server.directory / name
    server.run(server.operations.add(disk, socket_path=str(path), **settings))  # type: ignore[arg-type]
    return path


def test_a_device_that_was_added_goes_on(
    server: Serving, engine: EngineName, vhost_user_guest: Connect
) -> None:
    """With its settings, its disk and its front-end, beside one that was there from the start."""
    first = vhost_user_guest(server.add(Null(SIZE)))
    path = add(server, "more", f"memory:{SIZE},memfd=on", serial="its own", num_queues=2)
    added = vhost_user_guest(path, queues=2)
    added.write(0, X)
    with taken_over(server, engine, f"s1=null:{SIZE}"):
        server.stop()
        assert first.read(0, 512) == bytes(512)
        assert added.read(0, 4096, queue=1) == X
        assert added.get_id() == b"its own"
        added.close()
        first.close()
        with Guest.connect(path, queues=2) as guest:
            assert guest.read(0, 4096) == X
    assert not path.exists()


@one_engine
def test_a_device_that_cannot_be_made_again_costs_nothing(
    server: Serving, engine: EngineName, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """A disk of code that is gone is told of, with its device; all goes on here."""
    (tmp_path / "theirs.py").write_text("from server_kit.disks import Saving\n")
    first = vhost_user_guest(server.add(Null(SIZE)))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        added = vhost_user_guest(add(server, "more", "python:theirs:Saving"))
    command = successors.command("take-over", engine, f"s1=null:{SIZE}")
    with pytest.raises(VhostBlkError, match=r"cannot take over: more: .*theirs"):
        server.run(server.upgrade.run(command))
    added.write(0, X)
    assert added.read(0, 4096) == X
    first.write(0, X)


@one_engine
def test_a_disk_that_was_replaced_goes_on(
    server: Serving, engine: EngineName, vhost_user_guest: Connect
) -> None:
    """By `replace`: the next process serves the disk there is, not that of its command line."""
    path = add(server, "s1", f"memory:{SIZE}")
    guest = vhost_user_guest(path)
    server.run(server.operations.replace("s1", f"memory:{SIZE},memfd=on"))
    guest.write(0, Y)
    with taken_over(server, engine):
        server.stop()
        assert guest.read(0, 4096) == Y
        guest.close()


def test_a_replaced_disk_that_nobody_wrote_down_is_refused(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """A program's own object in the place of another: the next process would make the first."""
    guest = vhost_user_guest(server.add(Memfd(SIZE)))
    device = server.devices[0]
    server.run(change.replace(device, Memfd(SIZE), None))
    with pytest.raises(VhostBlkError, match=r"^s1: its disk was replaced, and a new process would"):
        server.run(server.upgrade.run(["/no/such"]))
    guest.write(0, X)


@pytest.mark.parametrize("owns", [False, True])
def test_the_control_socket_is_whose_the_rings_are(
    owns: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    """Its file goes with the process that serves; one that could not take over leaves it there."""
    path = tmp_path / "c"
    ours, theirs = Courier.pair()
    other = Courier(theirs)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        control = h.SourceState(kind="listening", path=str(path), fd=os.dup(listening.fileno()))
    takeover = Takeover(ours, h.ServerState(program="1", devices=(), control=control))
    assert takeover.control() is not None
    if owns:
        other.send(h.Last(since=0.0, devices=()), seconds=1)
        other.send(h.Totals(devices=()), seconds=1)
    else:
        takeover.add(Null(SIZE), DeviceOptions(name="more"))

    async def go_on() -> None:
        async with Server(FakeEngine()) as server:
            await takeover.go_on(server)

    with nullcontext() if owns else pytest.raises(VhostBlkError, match="more is not served by"):
        asyncio.run(go_on())
    takeover.close_control()
    assert path.exists() is not owns
    other.hang_up()
