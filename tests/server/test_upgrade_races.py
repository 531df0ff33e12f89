"""Upgrades, and what else happens at the same time."""

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import pytest
from server_kit import successors
from server_kit.disks import Saving
from server_kit.serving import Serving, make_engine, names, until
from server_kit.taking_over import one_engine

from vhostblk.disk.memfd import Memfd
from vhostblk.disk.null import Null
from vhostblk.errors import VhostBlkError
from vhostblk.guest.errors import GuestError
from vhostblk.guest.guest import Guest
from vhostblk.server import handover as h
from vhostblk.server.courier import Courier
from vhostblk.server.heir import Heir, Patience
from vhostblk.server.listener import SocketOptions, listen
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.server import Server
from vhostblk.server.takeover import Takeover
from vhostblk.server.upgrade import Upgrade

Connect = Callable[..., Guest]
SIZE = 1 << 20
X = b"x" * 4096
P = ParamSpec("P")


def looped(test: Callable[P, Coroutine[object, object, None]]) -> Callable[P, None]:
    """Run an ``async`` test."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def started(patience: Patience) -> tuple[Heir, Courier]:
    """Return a process that does nothing, and what it would say things with."""
    ours, theirs = Courier.pair()
    return Heir(subprocess.Popen(["sleep", "60"]), ours, patience), Courier(theirs)


@looped
async def test_what_was_heard_while_we_were_told_to_stop_counts() -> None:
    """
    "Mine", said to who was called off while it waited for that, is not lost: nobody runs the rings.

    A guest whose rings two processes have run one after the other, both from the same place, would
    have its requests done twice.
    """
    heir, other = started(Patience())
    waiting = asyncio.ensure_future(heir.answer(5, "take over"))
    await asyncio.sleep(0.01)  # it listens
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    other.send(h.Answer(), seconds=1)
    assert await heir.end()
    heir.courier.hang_up()
    other.hang_up()


@looped
async def test_what_was_heard_before_does_not_count() -> None:
    """The word that it is ready is not the word that the rings are its own."""
    heir, other = started(Patience())
    other.send(h.Answer(), seconds=1)
    await heir.answer(5, "get ready")
    assert not await heir.end()
    heir.courier.hang_up()
    other.hang_up()


@looped
async def test_one_that_hangs_up_and_goes_on_is_told_of() -> None:
    """It says nothing any more and has no status yet: that is no bug of ours."""
    heir, other = started(Patience(own=0.01))
    other.hang_up()
    with pytest.raises(VhostBlkError, match="the new process has hung up"):
        await heir.receive(h.Hello, 5, "start")
    await heir.end()
    heir.courier.hang_up()


def test_a_client_that_stays_keeps_nobody_from_asking_again(server: Serving) -> None:
    """An upgrade that failed is over, though who asked for it goes on with other requests."""
    server.add(Null(SIZE))

    async def twice() -> str:
        failed, leave = asyncio.Event(), asyncio.Event()

        async def client() -> None:
            with suppress(VhostBlkError):
                await server.upgrade.run(["false"])
            failed.set()
            await leave.wait()

        staying = asyncio.ensure_future(client())
        await failed.wait()
        try:
            await server.upgrade.run(["false"])
        except VhostBlkError as error:
            return str(error)
        finally:
            leave.set()
            await staying
        return ""

    assert server.run(twice()) == "the new process has ended with status 1"


@one_engine
def test_a_client_that_stays_keeps_us_from_ending_no_longer(server: Serving, engine: str) -> None:
    """Once another process has taken over, we end, though who asked is connected still."""
    server.add(Memfd(SIZE))
    command = successors.command("take-over", engine, f"s1=memory:{SIZE},memfd=on")
    assert server._server is not None
    handed_over = asyncio.Event()
    upgrade = Upgrade(server._server, None, handed_over.set)

    async def ended() -> int:
        leave = asyncio.Event()

        async def client() -> int:
            successor = await upgrade.run(command)
            await leave.wait()
            return successor.pid

        staying = asyncio.ensure_future(client())
        await handed_over.wait()
        async with asyncio.timeout(5):
            await upgrade.cancel()
        assert not staying.done()
        leave.set()
        return await staying

    pid = server.run(ended())
    os.kill(pid, signal.SIGTERM)
    assert os.waitpid(pid, 0)[1] == 0


def test_no_device_comes_while_another_process_takes_over(server: Serving) -> None:
    """Nobody would go on with it: whoever asks for one is told to ask again."""
    server.set_patience(Patience(start=0.2))
    server.add(Null(SIZE))

    async def both() -> tuple[object, object]:
        run = asyncio.ensure_future(server.upgrade.run(["sleep", "60"]))
        await asyncio.sleep(0)
        adding = server.operations.add(f"null:{SIZE}", socket_path=str(server.directory / "new"))
        results = await asyncio.gather(adding, run, return_exceptions=True)
        return results[0], results[1]

    refused, failed = server.run(both())
    assert str(refused) == "new: another process takes over now: try again when it has"
    assert "to start" in str(failed)
    assert list(server.services) == ["s1"]
    assert not (server.directory / "new").exists()
    server.add(Null(SIZE))


@one_engine
def test_only_a_process_of_ours_takes_over(
    server: Serving, engine: str, vhost_user_guest: Connect
) -> None:
    """
    What a script has started outlives the script: killed in vain it could run the rings, as we do.

    It is refused before it has anything.
    """
    guest = vhost_user_guest(server.add(Memfd(SIZE)))
    command = successors.command("take-over", engine, f"s1=memory:{SIZE},memfd=on")
    script = ["sh", "-c", '"$@"; exit $?', "sh"]
    with pytest.raises(VhostBlkError, match="out of our hands: name that program itself"):
        server.run(server.upgrade.run([*script, *command]))
    guest.write(0, X)
    assert guest.read(0, 4096) == X


class Waiting(Saving):
    """Takes its time to open."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def open(self) -> None:
        self.go_on.wait(10)
        super().open()


def test_a_device_on_its_way_does_not_come_any_more(server: Serving) -> None:
    """Its disk was being opened when an upgrade began: it is closed, and whoever asked is told."""
    server.set_patience(Patience(start=0.2))
    server.add(Null(SIZE))
    disk = Waiting()
    assert server._server is not None
    path = server.directory / "new"
    adding = server._server.add(disk, listen(path, SocketOptions()), DeviceOptions(name="new"))

    async def both() -> tuple[object, object]:
        device = asyncio.ensure_future(adding)
        await asyncio.sleep(0)
        run = asyncio.ensure_future(server.upgrade.run(["sleep", "60"]))
        await asyncio.sleep(0)
        disk.go_on.set()
        results = await asyncio.gather(device, run, return_exceptions=True)
        return results[0], results[1]

    refused, _ = server.run(both())
    assert str(refused) == "another process takes over now: try again when it has"
    assert names(disk.calls) == ["open", "flush", "close"]
    assert list(server.services) == ["s1"]
    assert not path.exists()


@one_engine
def test_a_device_that_goes_while_another_process_starts(
    server: Serving, engine: str, vhost_user_guest: Connect
) -> None:
    """The upgrade is refused in words, and the devices that stay are served on."""
    guest = vhost_user_guest(server.add(Memfd(SIZE)))
    server.add(Null(SIZE))
    command = successors.command("take-over", engine, f"s1=memory:{SIZE},memfd=on")

    async def both() -> object:
        run = asyncio.ensure_future(server.upgrade.run(command))
        await asyncio.sleep(0)
        await server.operations.remove("s2")
        (result,) = await asyncio.gather(run, return_exceptions=True)
        return result

    assert str(server.run(both())) == "a device has been removed meanwhile: ask for it again"
    guest.write(0, X)
    assert guest.read(0, 4096) == X


class Once(Saving):
    """Cannot be opened again."""

    def open(self) -> None:
        if self.calls:
            raise RuntimeError("once only")
        super().open()


def test_a_disk_that_does_not_come_back_is_its_own_devices_end(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """An upgrade fails behind the disk's close, and so does its open: other guests go on."""
    lost = vhost_user_guest(server.add(Once()))
    other = vhost_user_guest(server.add(Memfd(SIZE)))
    lost.write(0, X)
    with pytest.raises(VhostBlkError, match="cannot take over: of a reason"):
        server.run(server.upgrade.run(successors.command("last:refuse")))
    other.write(0, X)
    assert other.read(0, 4096) == X
    with pytest.raises(GuestError):
        lost.read(0, 4096)
    path = server.directory / "s1"
    assert until(lambda: not path.exists())
    assert "s1: the disk cannot be opened again" in caplog.text


@looped
async def test_where_front_ends_come_from_is_known_before_the_rings_are_owned(
    tmp_path: Path,
) -> None:
    """A path that cannot be connected to any more is found while the other process still serves."""
    path = tmp_path / "no socket"
    path.write_text("")
    ours, theirs = Courier.pair()
    device = h.DeviceState(
        name="one",
        source=h.SourceState(kind="connecting", path=str(path)),
        config="",
        writeback=True,
        served=False,
        locked=False,
        disk=(),
    )
    takeover = Takeover(ours, h.ServerState(program="1", devices=(device,)))
    takeover.add(Null(SIZE), DeviceOptions(name="one"))
    other = Courier(theirs)
    async with Server(make_engine("reference")) as server:
        with pytest.raises(VhostBlkError, match="it is no socket: say where QEMU listens"):
            await takeover.go_on(server)
        assert not server.services
    said = other.receive(h.Answer, seconds=1)
    assert said.refused is not None
    other.hang_up()
