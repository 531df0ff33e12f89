"""Where ``vhostblk serve`` meets front-ends: sockets of its own, of others, and of systemd's."""

import os
import socket
import stat
from pathlib import Path

import pytest
import running

from vhostblk.cli import main
from vhostblk.guest import Guest


def test_socket_mode_and_owner_are_those_asked_for(image: Path) -> None:
    """--socket-mode and --socket-owner decide who may connect."""
    path = image.with_name("s")
    owner = f"{os.getuid()}:{os.getgid()}"
    options = ("--socket-mode", "660", "--socket-owner", owner)
    with running.serving(*options, image, socket=path):
        status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())


def test_serve_replaces_a_dead_socket(image: Path) -> None:
    """What a killed server left behind does not keep the next one from starting."""
    path = image.with_name("s")
    with running.serving(image, socket=path) as server:
        server.kill()
    assert path.exists()
    words = ("-m", "vhostblk", "serve", "--engine", "reference", "--socket-path", path, image)
    server = running.start(*words, cwd=image.parent)
    assert server.stderr is not None
    assert "engine" in server.stderr.readline()  # the name is there already; this says it serves
    Guest.connect(path).close()
    running.end(server)


def test_serve_refuses_a_live_socket(image: Path) -> None:
    """A socket somebody serves is not taken away from them."""
    path = image.with_name("s")
    with running.serving(image, socket=path):
        words = ("-m", "vhostblk", "serve", "--socket-path", path, "memory:1M")
        assert running.outcome(*words, cwd=image.parent) == (
            1,
            f"vhostblk: {path} is in use by another process: end it, or choose another path\n",
        )
        Guest.connect(path).close()


@pytest.mark.parametrize("kind", ["listening", "connected"])
def test_fd_takes_over_either_kind_of_socket(image: Path, kind: str) -> None:
    """
    --fd serves on a socket somebody else opened.

    Spec: vhost-user, "Backend program conventions", --fd.
    """
    ours, theirs = socket.socketpair()
    path = image.with_name("s")
    if kind == "listening":
        ours.close()
        theirs.close()
        theirs = socket.socket(socket.AF_UNIX)
        theirs.bind(str(path))
        theirs.listen()
    fd = theirs.fileno()
    words = ("-m", "vhostblk.cli.backend", f"--fd={fd}", f"--blk-file={image}")
    server = running.start(*words, cwd=image.parent, pass_fds=(fd,))
    theirs.close()
    if kind == "listening":
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(str(path))
    use_and_leave(ours)
    if kind == "listening":
        log = running.end(server)
    else:  # nobody else can ever come: the end of the connection is the end of the server
        _, log = server.communicate(timeout=running.TIMEOUT_S)
    assert server.returncode == 0
    assert f"fd {fd}: a front-end has connected" in log
    assert image.read_bytes()[:512] == b"\x11" * 512


def use_and_leave(sock: socket.socket) -> None:
    from vhostblk.guest import FrontEnd  # noqa: PLC0415

    with Guest(FrontEnd.over(sock)) as guest:
        guest.start()
        guest.write(0, b"\x11" * 512)
        guest.stop()


def test_connect_serves_whoever_listens_and_comes_back(image: Path) -> None:
    """
    --connect waits for a front-end, serves it, and connects again when it is gone.

    Each wait is one line, however many tries it takes, and none of them a warning.
    """
    path = image.with_name("s")
    words = ("-m", "vhostblk", "serve", "--engine", "reference", "--connect", path, image)
    server = running.start(*words, cwd=image.parent)
    assert server.stderr is not None
    for _ in range(2):
        assert any("waiting for a front-end to listen" in line for line in server.stderr)
        with socket.socket(socket.AF_UNIX) as qemu:
            qemu.bind(str(path))
            qemu.listen(1)
            front_end, _ = qemu.accept()
            assert any(f"s: connected to {path}" in line for line in server.stderr)
        path.unlink()
        use_and_leave(front_end)
    log = running.end(server)
    assert image.read_bytes()[:512] == b"\x11" * 512
    assert "WARNING" not in log


def test_connect_says_what_can_never_work(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image in place of a socket is an error before the disk is touched."""
    assert main.main(["serve", "-q", "--connect", str(image), "no-such-disk"]) == 1
    assert capsys.readouterr().err == (
        f"vhostblk: cannot connect to {image}: it is no socket: say where QEMU listens\n"
    )


@pytest.mark.parametrize("program", ["vhostblk serve", "vhostblk-backend"])
def test_a_socket_of_systemds_is_served(image: Path, program: str) -> None:
    """
    Started by a socket unit, no place need be given; the manager hears of start and stop.

    The socket's name is the device's. Its file is systemd's and stays.
    """
    path = image.with_name("s")
    backend = program == "vhostblk-backend"
    module = ["vhostblk.cli.backend"] if backend else ["vhostblk", "serve"]
    disk = ["--blk-file", str(image)] if backend else ["--engine", "reference", str(image)]
    with running.unit(image.parent, "-m", *module, *disk) as (server, manager):
        assert manager.recv(100) == b"READY=1\nSTATUS=serving vm0"
        with Guest.connect(path) as guest:
            guest.write(0, b"\x11" * 512)
        log = running.end(server)
        assert manager.recv(100) == b"STOPPING=1\nSTATUS=draining and flushing"
    assert "vm0: a front-end has connected" in log
    assert path.exists()
    assert image.read_bytes()[:512] == b"\x11" * 512


def test_a_socket_of_systemds_is_not_left_without_a_server(image: Path) -> None:
    """A path beside a passed socket, and two sockets for one disk, are errors that say so."""
    path = image.with_name("s")
    with socket.socket(socket.AF_UNIX) as unit:
        unit.bind(str(path))
        fd = unit.fileno()
        for sockets, more, said in (
            ({"vm0": fd}, ["--socket-path", "t"], "and another place to serve was given"),
            ({"vm0": fd, "vm1": fd}, [], "passed 2 sockets (vm0, vm1): one disk has one"),
        ):
            serve = ("-m", "vhostblk", "serve", *more, str(image))
            server = running.start_passed(sockets, *serve, cwd=image.parent)
            _, log = server.communicate(timeout=running.TIMEOUT_S)
            assert server.returncode == 1
            assert log.startswith("vhostblk: systemd has passed ")
            assert said in log
            assert log.count("\n") == 1
