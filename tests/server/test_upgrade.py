import asyncio
import errno
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from server_kit import successors
from server_kit.disks import Ram, Saving, Slow
from server_kit.left import open_fds
from server_kit.serving import Serving, names, serving, until
from server_kit.taking_over import one_engine, taken_over

from vhostblk.disk.file import File
from vhostblk.disk.grammar import parse
from vhostblk.disk.make import make
from vhostblk.disk.memfd import Memfd
from vhostblk.disk.null import Null
from vhostblk.engine.api import OnError
from vhostblk.engine.choose import EngineName
from vhostblk.errors import VhostBlkError
from vhostblk.guest.blk import Request
from vhostblk.guest.errors import GuestError
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.guest import Guest
from vhostblk.server import upgrade
from vhostblk.server.courier import Courier
from vhostblk.server.handover import Answer
from vhostblk.server.heir import Heir, Patience
from vhostblk.server.status import status

Connect = Callable[..., Guest]
SIZE = 1 << 20
X, Y = b"x" * 4096, b"y" * 4096
SHORT = Patience(start=5, hold=0.2, prepare=0.2, quiet=0.2, own=0.2)
"""As the start of an interpreter takes what it takes."""


FAILURES = {
    "version": "vhostblk 9.9 reads state documents of version 99, and ours is 1: stop and start",
    "hello:die": "the new process has ended with status 3",
    "state:die": "the new process has ended with status 3",
    "ready:die": "the new process has ended with status 3",
    "ready:hang": r"the new process takes more than 0.2 s to get ready",
    "ready:refuse": "the new process cannot take over: of a reason",
    "last:die": "the new process has ended with status 3",
    "last:hang": "the new process takes more than 0.2 s to take over",
    "last:refuse": "the new process cannot take over: of a reason",
}


@one_engine
@pytest.mark.parametrize("step", FAILURES)
def test_a_new_process_that_fails_costs_nothing(
    step: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """
    Wherever it dies, hangs or refuses before it owns the rings, the guest goes on with us.

    No descriptor and no process is left; requests that wait meanwhile are served.
    """
    server.set_patience(SHORT)
    path = server.add(Memfd(SIZE), num_queues=2)
    guest = vhost_user_guest(path, queues=2)
    guest.write(0, X)
    guest.write(8, X, queue=1)
    before = open_fds()
    with pytest.raises(VhostBlkError, match=FAILURES[step]):
        server.run(server.upgrade.run(successors.command(step)))
    assert guest.read(0, 8192, queue=1) == X + X
    guest.write(0, Y)
    assert guest.read(0, 4096, queue=1) == Y
    guest.write(0, X)
    assert until(lambda: open_fds() == before)
    guest.stop()
    guest.start()
    assert guest.read(0, 4096) == X


def test_a_program_that_is_not_there_costs_nothing(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """A command that cannot be started, and one that knows nothing of us, are told."""
    guest = vhost_user_guest(server.add(Null(SIZE)))
    before = open_fds()
    with pytest.raises(VhostBlkError, match="cannot start /no/such: No such file or directory"):
        server.run(server.upgrade.run(["/no/such"]))
    with pytest.raises(VhostBlkError, match="the new process has ended with status 1"):
        server.run(server.upgrade.run(["false"]))
    assert open_fds() == before
    guest.write(0, X)


@one_engine
def test_a_start_that_takes_too_long_is_given_up(server: Serving) -> None:
    """The process is killed; nothing was held meanwhile."""
    server.set_patience(Patience(start=0.05))
    server.add(Null(SIZE))
    with pytest.raises(VhostBlkError, match=r"takes more than 0\.05 s to start"):
        server.run(server.upgrade.run(["sleep", "60"]))


def test_every_device_is_taken_over_at_once(
    server: Serving, engine: EngineName, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Three devices and their front-ends, one of them without: each goes on with its own disk."""
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    paths = [server.add(disk) for disk in (File(image), Memfd(SIZE), Null(SIZE))]
    one, two = (vhost_user_guest(path) for path in paths[:2])
    one.write(0, X)
    two.write(0, Y)
    disks = (f"s1={image}", f"s2=memory:{SIZE},memfd=on", f"s3=null:{SIZE}")
    with taken_over(server, engine, *disks):
        server.stop()
        assert (one.read(0, 4096), two.read(0, 4096)) == (X, Y)
        one.write(8, Y)
        two.write(8, X)
        assert (one.read(8, 4096), two.read(8, 4096)) == (Y, X)
        with Guest.connect(paths[2]) as three:
            assert three.read(0, 512) == bytes(512)
        one.close()
        two.close()
    assert image.read_bytes()[:8192] == X + Y
    assert not any(path.exists() for path in paths)


@one_engine
def test_a_device_that_is_missing_or_new_is_refused(
    server: Serving, engine: EngineName, vhost_user_guest: Connect
) -> None:
    """All of it or nothing: who asks for other devices takes none."""
    guest = vhost_user_guest(server.add(Null(SIZE)))
    server.add(Null(SIZE))
    one, two, more = (f"s{number}=null:{SIZE}" for number in (1, 2, 3))
    for words, line in (
        ([one], "s2 would not be served any more"),
        ([one, two, more], "s3 is not served by the process we take over from"),
    ):
        with pytest.raises(VhostBlkError, match=line):
            server.run(server.upgrade.run(successors.command("take-over", engine, *words)))
        guest.write(0, X)


@one_engine
def test_a_disk_that_changed_is_refused(
    server: Serving, engine: EngineName, vhost_user_guest: Connect
) -> None:
    """What the guest was told must stay true: another size is told, and the guest goes on."""
    guest = vhost_user_guest(server.add(Null(SIZE)))
    command = successors.command("take-over", engine, f"s1=null:{2 * SIZE}")
    with pytest.raises(VhostBlkError, match="s1: the disk, or what was asked for it, is not what"):
        server.run(server.upgrade.run(command))
    guest.write(0, X)


def test_a_python_disk_is_put_down_and_taken_up(
    server: Serving, engine: EngineName, vhost_user_guest: Connect
) -> None:
    """Flushed, saved and closed here; there restored, then opened, with all that was written."""
    disk = Saving()
    guest = vhost_user_guest(server.add(disk))
    guest.write(0, X)
    with taken_over(server, engine, "s1=python:server_kit.disks:Saving"):
        server.stop()
        assert names(disk.calls) == ["open", "write", "flush", "save", "close"]
        assert guest.read(0, 4096) == X
        guest.write(8, Y)
        assert guest.read(8, 4096) == Y
        guest.close()


@one_engine
@pytest.mark.parametrize("step", ["last:die", "last:refuse"])
def test_a_python_disk_is_taken_up_again_here(
    step: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """When nobody takes over behind its close, the disk is restored and opened once more."""
    disk = Saving()
    guest = vhost_user_guest(server.add(disk))
    guest.write(0, X)
    with pytest.raises(VhostBlkError):
        server.run(server.upgrade.run(successors.command(step)))
    assert names(disk.calls)[2:] == ["flush", "save", "close", "restore", "open"]
    assert guest.read(0, 4096) == X


def test_a_disk_nobody_can_carry_is_refused_at_once(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Without save and restore nothing is lost silently; no process is started."""
    guest = vhost_user_guest(server.add(Ram()))
    with pytest.raises(VhostBlkError, match=r"s1: a Ram disk would lose .* give it methods save"):
        server.run(server.upgrade.run(["/no/such"]))
    guest.write(0, X)


class SlowSaving(Slow):
    """A slow one that is carried over."""

    def save(self) -> bytes:
        return b""

    def restore(self, data: bytes) -> None:
        assert not data


@one_engine
def test_requests_that_take_long_are_not_failed(server: Serving, vhost_user_guest: Connect) -> None:
    """The upgrade gives up, not the request: it ends well when the disk is done with it."""
    server.set_patience(SHORT)
    slow = SlowSaving()
    guest = vhost_user_guest(server.add(slow))
    slow.set(free=False)
    ticket = guest.submit(Request.write(0, X))
    assert until(lambda: slow.waiting == 1)
    with pytest.raises(VhostBlkError, match=r"s1: requests take longer than 0.2 s now"):
        server.run(server.upgrade.run(successors.command("none")))
    slow.set(free=True)
    assert guest.wait(ticket).status == 0
    assert guest.read(0, 4096) == X


@one_engine
def test_a_message_that_takes_long_is_waited_for_and_no_longer(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """While a stop drains, an upgrade gives up; the stop is answered as ever."""
    server.set_patience(SHORT)
    slow = SlowSaving()
    guest = vhost_user_guest(server.add(slow))
    slow.set(free=False)
    guest.submit(Request.read(0, 512))
    assert until(lambda: slow.waiting == 1)
    bases: list[dict[int, int]] = []
    stopping = threading.Thread(target=lambda: bases.append(guest.stop()))
    stopping.start()
    assert until(lambda: server.ask(server.devices[0].attached.lock.locked))  # type: ignore[union-attr]
    with pytest.raises(VhostBlkError, match=r"takes longer than 0\.2 s now: try again"):
        server.run(server.upgrade.run(successors.command("none")))
    slow.set(free=True)
    stopping.join(10)
    assert bases == [{0: 1}]
    guest.start()
    guest.write(0, X)


@one_engine
def test_a_front_end_that_comes_meanwhile_is_served_by_the_next(
    server: Serving, engine: EngineName
) -> None:
    """A connection in the backlog is not lost, nor is what it has sent."""
    path = server.add(Memfd(SIZE))
    first = FrontEnd.connect(path)
    second = FrontEnd.connect(path)
    with taken_over(server, engine, f"s1=memory:{SIZE},memfd=on"):
        server.stop()
        first.get_features()
        first.close()
        with Guest(second) as guest:
            guest.start()
            guest.write(0, X)


@one_engine
def test_one_at_a_time(server: Serving) -> None:
    """A second one is refused while the first is under way."""
    server.set_patience(Patience(start=0.1))
    server.add(Null(SIZE))

    async def both() -> tuple[object, object]:
        runs = (server.upgrade.run(["sleep", "60"]), server.upgrade.run(["sleep", "60"]))
        return await asyncio.gather(*runs, return_exceptions=True)

    results = [str(result) for result in server.run(both())]
    assert results[1] == "an upgrade is under way already"
    assert "to start" in results[0]


@one_engine
def test_a_disk_that_was_replaced_is_the_one_that_goes_on(
    server: Serving, engine: EngineName, vhost_user_guest: Connect
) -> None:
    """What is served now counts, not what the command line has said at the start."""
    spec = parse(f"memory:{SIZE},memfd=on")
    guest = vhost_user_guest(server.add_from(spec, make(spec)))
    guest.write(0, X)
    with taken_over(server, engine, f"s1=memory:{SIZE}"):
        server.stop()
        assert guest.read(0, 4096) == X
        guest.close()


class Full(Saving):
    """Has no room while it is told so."""

    full = True

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        super().write(offset, views)


def test_requests_that_are_held_are_not_handed_over(vhost_user_guest: Connect) -> None:
    """With on_error stop what the disk has failed is the operator's first, and it is said so."""
    disk = Full()
    with serving("native") as server:
        guest = vhost_user_guest(server.add(disk, on_error=OnError.STOP))
        ticket = guest.submit(Request.write(0, X))
        device = server.devices[0]
        assert until(lambda: server.ask(lambda: status(device)["queues"][0]["stalled"] is not None))
        with pytest.raises(VhostBlkError, match=r"s1: requests are held .* ctl resume s1"):
            server.run(server.upgrade.run(["/no/such"]))
        disk.full = False
        server.ask(device.resume_stalled)
        assert guest.wait(ticket).status == 0
        assert guest.read(0, 4096) == X
        guest.close()


@pytest.mark.parametrize("owned", [False, True])
def test_who_had_owned_the_rings_is_known_behind_its_death(owned: bool) -> None:  # noqa: FBT001
    """
    What a process has said last is read once it is dead for certain: then, and only then, we go on.

    Two processes that serve one ring would destroy the disk.
    """
    ours, theirs = Courier.pair()
    process = subprocess.Popen(["sleep", "60"])
    successor = Heir(process, ours, SHORT)
    other = Courier(theirs)
    if owned:
        other.send(Answer(), seconds=1)
    assert asyncio.run(successor.end()) is owned
    assert process.returncode == -signal.SIGKILL
    ours.hang_up()
    other.hang_up()


def test_rings_that_died_with_their_owner_are_nobodys(
    server: Serving, vhost_user_guest: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they stand can only be guessed: we end, and do not touch them before that."""
    end = Heir.end

    guest = vhost_user_guest(server.add(Null(SIZE)))
    told: list[object] = []

    def stop() -> None:
        try:
            told.append(guest.stop())
        except GuestError:
            told.append(None)

    stopping = threading.Thread(target=stop)

    async def owned(successor: Heir) -> bool:
        if stopping.ident is None:
            stopping.start()
            await asyncio.sleep(0.01)  # its first message waits
        await end(successor)
        return True

    monkeypatch.setattr(Heir, "end", owned)
    with pytest.raises(upgrade.Lost, match="front-ends have to connect again"):
        server.run(server.upgrade.run(successors.command("last:die")))
    assert server.upgrade.lost is not None
    stopping.join(10)
    assert told == [None]
    with pytest.raises(GuestError):
        guest.read(0, 512)
