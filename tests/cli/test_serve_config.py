"""``vhostblk serve --config``: many devices, one process."""

import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import running
from upgrading import READY, Upgraded

from vhostblk.cli import main
from vhostblk.guest import Guest

X = b"x" * 4096


def write(path: Path, *names: str) -> Path:
    text = f'control = "{path.parent}/c"\nengine = "reference"\n'
    for name in names:
        text += f'[[device]]\ndisk = "memory:1M"\nsocket_path = "{path.parent}/{name}"\n'
    path.write_text(text)
    return path


def test_devices_of_a_file_are_served(tmp_path: Path) -> None:
    """Each on its socket; SIGHUP brings another one; SIGTERM ends all of them."""
    path = write(tmp_path / "f.toml", "a", "b")
    with running.start("-m", "vhostblk", "serve", "--config", path, cwd=tmp_path) as server:
        try:
            for name in "ab":
                running.wait_for_socket(tmp_path / name, server)
            for name in "ab":
                with Guest.connect(tmp_path / name) as guest:
                    guest.write(0, X)
                    assert guest.read(0, 4096) == X
            here = ["ctl", "--control", str(tmp_path / "c")]
            assert main.main([*here, "list"]) == 0
            write(path, "a", "b", "d")
            server.send_signal(signal.SIGHUP)
            running.wait_for_socket(tmp_path / "d", server)
            added = ["add", "memory:1M", f"socket_path={tmp_path}/e", "num_queues=2"]
            assert main.main([*here, *added]) == 0
            with Guest.connect(tmp_path / "e", queues=2) as guest:
                assert guest.read(0, 512, queue=1) == bytes(512)
            log = running.end(server)
        finally:
            server.kill()
    assert f"{path} was read again" in log
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_check_says_whether_a_file_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is opened; what is wrong is one line and status 1."""
    path = write(tmp_path / "f.toml", "a", "b")
    assert main.main(["serve", "--config", str(path), "--check"]) == 0
    assert capsys.readouterr().out == f"{path}: 2 devices, nothing wrong\n"
    assert not (tmp_path / "a").exists()
    path.write_text(path.read_text() + "num_queues = 0\n")
    assert main.main(["serve", "--config", str(path), "--check"]) == 1
    says = f"vhostblk: {path}: device 2: num_queues is 1 to 64, not 0\n"
    assert capsys.readouterr().err == says


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--config", "f", "disk.img"], "With --config the file says it all: write disk = ..."),
        (["--config", "f", "--num-queues", "2"], "write num_queues = ... there"),
        (["--check", "disk.img", "--fd", "3"], "Give --config FILE with --check."),
        ([], "Give DISK, or --config FILE."),
    ],
)
def test_what_does_not_go_together_is_told(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, before anything is read."""
    assert main.main(["serve", *words]) == 2
    assert says in capsys.readouterr().err


def test_one_disk_that_cannot_be_served_is_told(tmp_path: Path) -> None:
    """With its device; nothing is served then, and no socket is left."""
    path = write(tmp_path / "f.toml", "a")
    path.write_text(path.read_text() + '[[device]]\ndisk = "/nowhere"\nsocket_path = "b"\n')
    status, log = running.outcome("-m", "vhostblk", "serve", "--config", path, cwd=tmp_path)
    assert status == 1
    assert "vhostblk: b: /nowhere: no such file" in log.splitlines()[-1]
    assert not any((tmp_path / name).exists() for name in "abc")


def test_sockets_of_systemds_go_to_devices_by_name(tmp_path: Path) -> None:
    """
    Two sockets, two devices, and both go on in a new process.

    Source: sd_listen_fds(3), LISTEN_FDNAMES.
    """
    path, names = tmp_path / "f.toml", ["one", "two"]
    path.write_text(
        'engine = "reference"\n'
        + "".join(
            f'[[device]]\ndisk = "memory:1M,memfd=on"\nsystemd = "{name}"\n' for name in names
        )
    )
    with ExitStack() as stack:
        units = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in names]
        for unit, name in zip(units, names, strict=True):
            unit.bind(str(tmp_path / name))
            unit.listen()
        passed = {name: unit.fileno() for unit, name in zip(units, reversed(names), strict=True)}
        words = ("-m", "vhostblk", "serve", "--config", path)
        server = Upgraded(running.start_passed(passed, *words, cwd=tmp_path))
        try:
            server.wait_for(READY)
            with Guest.connect(tmp_path / "one") as one, Guest.connect(tmp_path / "two") as two:
                one.write(0, X)
                server.upgrade()
                two.write(8, X)
                assert (one.read(0, 4096), two.read(0, 4096)) == (X, bytes(4096))
            log = server.end()
        finally:
            server.kill()
    assert "one: a front-end has connected" in log
    assert "two: a front-end has connected" in log


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], "systemd has passed no socket 'one' (but none): enable its unit"),
        (["one", "two"], "systemd has passed sockets that no device is for (two)"),
    ],
)
def test_sockets_and_devices_must_agree(tmp_path: Path, names: list[str], line: str) -> None:
    """A device without its socket, and a socket without a device, are errors that name them."""
    path = tmp_path / "f.toml"
    path.write_text('[[device]]\ndisk = "memory:1M"\nsystemd = "one"\n')
    with socket.socket(socket.AF_UNIX) as unit:
        passed = dict.fromkeys(names, unit.fileno())
        words = ("-m", "vhostblk", "serve", "--config", path)
        server = running.start_passed(passed, *words, cwd=tmp_path)
        _, log = server.communicate(timeout=running.TIMEOUT_S)
    assert server.returncode == 1
    assert line in log
