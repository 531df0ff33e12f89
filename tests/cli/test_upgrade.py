"""A server that is replaced while guests use it: one process after the other."""

import re
import socket
from pathlib import Path

import pytest
import running
from upgrading import BLOCK, Load, Upgraded, check_image, image_served, needs_core, served

from vhostblk.guest import Guest

ENGINES = ["native", "reference"]


@pytest.mark.parametrize(
    ("engine", "packed"),
    [
        ("native", True),
        pytest.param("reference", False, marks=pytest.mark.slow),
        pytest.param("native", False, marks=pytest.mark.slow),
        pytest.param("reference", True, marks=pytest.mark.slow),
    ],
)
def test_a_guest_does_not_notice(image: Path, engine: str, packed: bool) -> None:  # noqa: FBT001
    """
    Two upgrades under load: every byte is where it belongs, on the connection there was.

    The image is locked by its open file all the time: nobody else gets it, before or behind.
    """
    with image_served(image, "--num-queues", "2", engine=engine) as (server, path):
        with Guest.connect(path, queues=2, packed=packed) as guest:
            load = Load(guest, 2)
            load.during(server, 2)
        status, line = running.outcome(
            *("-m", "vhostblk", "serve", "-q", "--socket-path", "t", image), cwd=image.parent
        )
        assert status == 1
        assert f"(pid {server.pid}) writes to it" in line
        log = server.end()
    check_image(image, load)
    assert log.count("a front-end has connected") == log.count("the front-end is gone") == 1
    assert "WARNING" not in log
    assert "ERROR" not in log
    assert not path.exists()
    assert max(server.pauses) < 1000


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_many_upgrades_leave_nothing(image: Path, engine: str) -> None:
    """Ten in a row under load: the last process has as many descriptors as the second one."""
    with (
        image_served(image, "--num-queues", "4", engine=engine) as (server, path),
        Guest.connect(path, queues=4) as guest,
    ):
        load = Load(guest, 4)
        load.during(server, 1)
        before = server.open_fds
        load.during(server, 9)
        assert server.open_fds == before
        server.end()
    check_image(image, load)


def test_nobody_connected_is_upgraded_too(image: Path) -> None:
    """The socket listens all the time: who connects meanwhile is served by the next process."""
    with image_served(image) as (server, path):
        inode = path.stat().st_ino
        server.upgrade()
        assert path.stat().st_ino == inode
        with Guest.connect(path) as guest:
            load = Load(guest, 1)
            load.round()
        server.upgrade()
        with Guest.connect(path) as guest:
            assert guest.read(0, BLOCK) == image.read_bytes()[:BLOCK]
        server.end()
    assert not path.exists()


def test_memory_in_a_memfd_is_carried(tmp_path: Path) -> None:
    """memfd=on keeps what was written; a disk in private memory is not given up, and says so."""
    path = tmp_path / "s"
    words = ("--engine", "reference", "--socket-path", path)
    with (
        served(*words, "memory:8M,memfd=on", cwd=tmp_path) as server,
        Guest.connect(path) as guest,
    ):
        load = Load(guest, 1)
        load.round()
        load.during(server, 1)
        server.end()
    with (
        served(*words, "memory:8M", cwd=tmp_path) as server,
        Guest.connect(path) as guest,
    ):
        guest.write(0, b"x" * 512)
        server.ask()
        server.wait_for(
            re.compile(
                r"ERROR +upgrade: not done, serving on: s: a Memory disk would lose what it holds "
                r"in memory: serve memory:SIZE,memfd=on"
            )
        )
        assert guest.read(0, 512) == b"x" * 512
        server.end()


@pytest.mark.slow
def test_a_front_end_that_listens_is_kept(image: Path) -> None:
    """With --connect the connection goes on, and the next process connects again afterwards."""
    path = image.with_name("q")
    with socket.socket(socket.AF_UNIX) as qemu:
        qemu.bind(str(path))
        qemu.listen(1)
        words = ("--engine", "reference", "--connect", path, image)
        with served(*words, cwd=image.parent) as server:
            from vhostblk.guest import FrontEnd  # noqa: PLC0415

            with Guest(FrontEnd.over(qemu.accept()[0])) as guest:
                guest.start()
                load = Load(guest, 1)
                load.during(server, 1)
            with Guest(FrontEnd.over(qemu.accept()[0])) as guest:
                guest.start()
                assert guest.read(0, BLOCK) == image.read_bytes()[:BLOCK]
                server.upgrade()
            log = server.end()
    assert log.count("connected to") >= 2  # it may have come back once more before the end


def test_systemd_is_told_who_serves(image: Path) -> None:
    """
    The socket of a socket unit is handed over, name and all; MAINPID= comes before READY=1.

    Source: sd_notify(3).
    """
    path = image.with_name("s")
    serve = ("-m", "vhostblk", "serve", "--engine", "reference", image)
    with running.unit(image.parent, *serve) as (process, manager):
        server = Upgraded(process)
        try:
            first = server.pid
            assert manager.recv(100) == b"READY=1\nSTATUS=serving vm0"
            with Guest.connect(path) as guest:
                Load(guest, 1).during(server, 1)
            said = manager.recv(200).decode().split("\n")
            assert said[0] == "RELOADING=1"
            assert said[1].startswith("MONOTONIC_USEC=")
            assert manager.recv(100).decode() == f"MAINPID={server.pid}"
            assert manager.recv(100) == b"READY=1\nSTATUS=serving vm0"
            assert server.pid != first
            server.end()
            assert manager.recv(100).startswith(b"STOPPING=1")
        finally:
            server.kill()
    assert path.exists()


def test_told_to_stop_ends_an_upgrade_too(image: Path) -> None:
    """SIGTERM behind SIGUSR2 ends the server, and no process is left of the other."""
    with image_served(image) as (server, path):
        server.ask()
        server.wait_for(re.compile("upgrade: starting"))
        log = server.end()  # reads until no process has the pipe
        assert "upgrade: not done, serving on: told to stop" in log
    assert not path.exists()


@pytest.mark.slow
def test_one_upgrade_at_a_time(image: Path) -> None:
    """A second SIGUSR2 while one is under way is a warning, not a second process."""
    with image_served(image) as (server, _):
        server.ask()
        server.wait_for(re.compile("upgrade: starting"))
        server.upgrade()
        log = server.end()
    assert log.count("upgrade: starting") == 1
    assert "WARNING upgrade: one is under way already" in log


@pytest.mark.parametrize("passes", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_migration_goes_on(image: Path, passes: int) -> None:
    """
    Both ends are replaced while the guest migrates: no page is left unmarked, no byte is lost.

    The image is locked by the end that runs, and by no other; the lock goes over, too.

    Spec: vhost-user, "Migration".
    """
    needs_core()
    one, two = image.with_name("one"), image.with_name("two")
    disk = f"file:{image},lock=while-running"
    with (
        served("--socket-path", one, disk, cwd=image.parent) as source,
        served("--socket-path", two, disk, cwd=image.parent) as destination,
        Guest.connect(one) as guest,
    ):
        load = Load(guest, 1)
        load.round()
        ends = [source, destination, source][-passes:]

        def meanwhile() -> None:
            ends.pop().upgrade()
            load.round()

        guest.migrate_to(two, passes=passes, meanwhile=meanwhile)
        load.during(destination, 1)
        source.end()
        destination.end()
    check_image(image, load)
