import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import activated
import pytest
import running

from vhostblk.cli import main
from vhostblk.guest import BrokenQueueError, DisconnectedError, Guest, StatusError

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an image file of 1 MiB."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(MIB))
    return path


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_serve_ends_on_sigterm_with_everything_on_the_disk(image: Path, engine: str) -> None:
    """SIGTERM while a guest is connected: status 0, its write is in the file, the socket gone."""
    if engine == "native":
        pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)
    path = image.with_name("s")
    with running.serving("--engine", engine, image, socket=path) as server:
        with Guest.connect(path) as guest:
            guest.write(2, b"vhostblk" * 64)
            log = running.end(server)
            with pytest.raises(DisconnectedError):
                guest.frontend.get_features()
        assert f"s: {MIB} bytes on 1 queue, {engine} engine" in log
        assert not path.exists()
    assert image.read_bytes()[1024:1536] == b"vhostblk" * 64


def test_serve_ends_on_sigint_too(image: Path) -> None:
    """Ctrl-C ends a server as cleanly as SIGTERM, without a traceback."""
    options = ("--engine", "reference")
    with running.serving(*options, image, socket=image.with_name("s")) as server:
        Guest.connect(image.with_name("s")).close()
        log = running.end(server, signal.SIGINT)
    assert all(" INFO " in line for line in log.splitlines())


def test_v_shows_every_message_by_name(image: Path) -> None:
    """-v logs what the front-end sends, with the standard's names."""
    with running.serving("-v", image, socket=image.with_name("s")) as server:
        with Guest.connect(image.with_name("s")) as guest:
            guest.stop()
        log = running.end(server)
    for name in (
        "GET_FEATURES",
        "SET_OWNER",
        "ADD_MEM_REG",
        "SET_VRING_KICK index=0",
        "SET_STATUS",
    ):
        assert any(" DEBUG " in line and name in line for line in log.splitlines()), name


def test_q_leaves_nothing_to_say(image: Path) -> None:
    """-q logs warnings only, and an ordinary life has none."""
    options = ("-q", "--engine", "reference")
    with running.serving(*options, image, socket=image.with_name("s")) as server:
        Guest.connect(image.with_name("s")).close()
        assert running.end(server) == ""


@pytest.mark.parametrize("program", ["vhostblk serve", "vhostblk-backend"])
def test_sigusr1_logs_the_status(image: Path, program: str) -> None:
    """One line of JSON for the device, however quiet the server is, as often as it is asked."""
    path = image.with_name("s")
    backend = program == "vhostblk-backend"
    words = ["-m", "vhostblk.cli.backend"] if backend else ["-m", "vhostblk", "serve"]
    disk = ["--blk-file", image] if backend else [image]
    with running.start(*words, "-q", "--socket-path", path, *disk, cwd=image.parent) as server:
        try:
            running.wait_for_socket(path, server)
            assert server.stderr is not None
            with Guest.connect(path) as guest:
                for requests in (1, 2):
                    guest.read(0, 512)
                    server.send_signal(signal.SIGUSR1)
                    # Without the compiled core a warning says so first.
                    line = next(line for line in server.stderr if " status: " in line)
                    head, _, text = line.partition(" status: ")
                    assert head.endswith(" INFO    s:")
                    status = json.loads(text)
                    assert status["queues"][0]["counters"]["reads"] == requests
                    assert status["front_end_connected"] is True
            assert running.end(server) == ""
        finally:
            server.kill()


def test_poll_reaches_the_workers(image: Path) -> None:
    """What --poll says is the window that the status document shows."""
    pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)
    path = image.with_name("s")
    with running.serving("--poll", "7us", image, socket=path) as server:
        with Guest.connect(path) as guest:
            guest.read(0, 512)
            server.send_signal(signal.SIGUSR1)
            line = next(line for line in server.stderr or () if " status: " in line)
        assert [
            one["window_us"] for one in json.loads(line.partition(" status: ")[2])["workers"]
        ] == [7]
        running.end(server)


def test_options_reach_the_device(image: Path) -> None:
    """Serial, queues, read-only, cache and block size are what the guest finds."""
    path = image.with_name("s")
    options = "--serial abc --num-queues 3 --read-only --cache writethrough --block-size 4096"
    with (
        running.serving(*options.split(), image, socket=path) as server,
        Guest.connect(path, queues=3) as guest,
    ):
        config = guest.config()
        assert guest.get_id() == b"abc"
        assert (guest.agreement.max_queues, config.num_queues) == (3, 3)
        assert (config.blk_size, config.writeback) == (4096, 0)
        with pytest.raises(StatusError):
            guest.write(0, bytes(4096))
        running.end(server)
    assert image.read_bytes() == bytes(MIB)


@pytest.mark.parametrize("program", ["vhostblk serve", "vhostblk-backend"])
def test_confidential_options_reach_the_device(image: Path, program: str) -> None:
    """Bit 33 and the ranges: what lies outside of them fails, without a byte of it touched."""
    path = image.with_name("s")
    backend = program == "vhostblk-backend"
    words: list[str | Path] = (
        ["-m", "vhostblk.cli.backend"] if backend else ["-m", "vhostblk", "serve"]
    )
    disk: list[str | Path] = ["--blk-file", image] if backend else [image]
    options = "--confidential require --shared-ranges 0x100000000+4K --access-platform off"
    words += [*options.split(), "--iommu", "off", "--socket-path", path, *disk]
    with running.start(*words, cwd=image.parent) as server:
        try:
            running.wait_for_socket(path, server)
            with Guest.connect(path) as guest:
                assert not guest.agreement.offered >> 33 & 1
                # Neither data nor table are in the pages of the ring, which are allowed.
                with pytest.raises(BrokenQueueError):
                    guest.write(0, b"\x11" * 65536)
            assert "queue 0 is broken: indirect table" in running.end(server)
        finally:
            server.kill()
    assert image.read_bytes() == bytes(MIB)


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


def test_serve_refuses_an_image_another_one_has(image: Path) -> None:
    """The second server says who has the image, and what to do."""
    with (
        running.serving(image, socket=image.with_name("s")) as server,
        Guest.connect(image.with_name("s")),
    ):
        words = ("-m", "vhostblk", "serve", "--engine", "reference", "--socket-path", "s2", image)
        status, line = running.outcome(*words, cwd=image.parent)
    assert status == 1
    assert line.startswith(f"vhostblk: {image}: in use: ")
    assert f"(pid {server.pid}) writes to it" in line
    assert line.count("\n") == 1


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


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no.img"], "no.img: no such file: create it, e.g. truncate -s 10G no.img"),
        (["."], ".: not a regular file or block device, cannot be a disk"),
        (
            ["odd.img"],
            (
                "odd.img: its 1 bytes are not a multiple of its 512-byte blocks:"
                " truncate -s 512 odd.img makes it so"
            ),
        ),
        (
            ["foo:x"],
            (
                "foo:x: no disk has the scheme 'foo' (there are file, memory, null, python);"
                " for a file of that name write file:foo:x"
            ),
        ),
        (["memory:12"], "memory:12: a disk has 512 bytes or a multiple of that, not 12"),
        (
            ["--cache", "none", "memory:1M"],
            "cache is for files: a memory: disk has no host cache",
        ),
        (
            ["--serial", "123456789012345678901", "memory:1M"],
            "serial '123456789012345678901' is longer than 20 bytes",
        ),
        (["--queue-size", "3", "memory:1M"], "queue_size is a power of two up to 1024, not 3"),
        (
            ["--block-size", "1000", "memory:1M"],
            "block_size is a power of two from the disk's 512 to 1048576, not 1000",
        ),
        (
            ["--confidential", "require", "memory:1M"],
            (
                "confidential require needs to know what the guest shares: give shared ranges, as"
                " the guest's dmesg prints them ('software IO TLB: mapped [mem ...]'), or"
                " learn=10000"
            ),
        ),
        (
            ["--shared-ranges", "1M+1M", "memory:1M"],
            (
                "shared ranges are not looked at with confidential auto: give confidential require,"
                " too"
            ),
        ),
        (
            ["--confidential", "off", "--on-violation", "break", "memory:1M"],
            "with confidential off nothing is a violation: give confidential require, too",
        ),
    ],
)
def test_serve_says_in_one_line_what_is_wrong(
    words: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A disk or an option that cannot be is an error before anything is served."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.img").write_bytes(b"x")
    assert main.main(["serve", "--engine", "reference", "-q", "--socket-path", "s", *words]) == 1
    assert capsys.readouterr() == ("", f"vhostblk: {line}\n")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "no where/s",
            (
                "cannot listen on no where/s: its directory is not there:"
                " mkdir -p 'no where', or choose another"
            ),
        ),
        (".", ". is a directory: give the socket a name in it"),
        ("file", "file exists and is not a socket: choose another path"),
        (
            "x" * 120,
            (
                f"{'x' * 120}: a socket path has 107 bytes at most, not 120:"
                " choose a directory with a shorter name, like /run"
            ),
        ),
    ],
)
def test_serve_says_what_is_wrong_with_a_path(
    path: str,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A socket that cannot be made is an error that names the path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main.main(["serve", "-q", "--socket-path", path, "memory:1M"]) == 1
    assert capsys.readouterr() == ("", f"vhostblk: {line}\n")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--socket-mode", "999"],
            "Invalid value for '--socket-mode': '999' is not a mode; give octal digits like 660.",
        ),
        (
            ["--socket-owner", "no-such-user"],
            (
                "Invalid value for '--socket-owner': there is no user 'no-such-user'"
                " on this machine."
            ),
        ),
        (
            ["--engine", "fast"],
            "Invalid value for '--engine': 'fast' is not one of 'auto', 'native', 'reference'.",
        ),
        (["--fd", "3"], "Give --socket-path PATH, --connect PATH or --fd FDNUM, one of them."),
        (
            ["--shared-ranges", "1M-0x1fffff"],
            (
                "Invalid value for '--shared-ranges': shared range '1M-0x1fffff' ends within a"
                " page: the end is the first byte behind the range, 0x200000."
            ),
        ),
        (
            ["--confidential", "on"],
            "Invalid value for '--confidential': 'on' is not one of 'off', 'auto', 'require'.",
        ),
    ],
)
def test_serve_refuses_bad_options(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong option is a usage error: status 2, one line, where to look."""
    assert main.main(["serve", "--socket-path", "s", *words, "memory:1M"]) == 2
    assert capsys.readouterr() == ("", f"vhostblk serve: {line} See 'vhostblk serve --help'.\n")


def test_fd_says_that_it_is_no_socket() -> None:
    """A descriptor that is not a socket is named."""
    words = [sys.executable, "-m", "vhostblk", "serve", "--fd", "0", "memory:1M"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "vhostblk: fd 0 is not a socket: Socket operation on non-socket\n"


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
    path, told = image.with_name("s"), image.with_name("n")
    backend = program == "vhostblk-backend"
    module = ["vhostblk.cli.backend"] if backend else ["vhostblk", "serve"]
    disk = ["--blk-file", str(image)] if backend else ["--engine", "reference", str(image)]
    with (
        socket.socket(socket.AF_UNIX) as unit,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        unit.bind(str(path))
        unit.listen()
        manager.bind(str(told))
        manager.settimeout(running.TIMEOUT_S)
        command: list[str] = [sys.executable, "-m", *module, *disk]
        server = running.start(
            *(activated.__file__, f"{unit.fileno()}:vm0", "--", *command),
            cwd=image.parent,
            pass_fds=(unit.fileno(),),
            environ={"NOTIFY_SOCKET": str(told)},
        )
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
            ([f"{fd}:vm0"], ["--socket-path", "t"], "and another place to serve was given"),
            ([f"{fd}:vm0", f"{fd}:vm1"], [], "passed 2 sockets (vm0, vm1): one disk has one"),
        ):
            serve = ("-m", "vhostblk", "serve", *more, str(image))
            words = (activated.__file__, *sockets, "--", sys.executable, *serve)
            server = running.start(*words, cwd=image.parent, pass_fds=(fd,))
            _, log = server.communicate(timeout=running.TIMEOUT_S)
            assert server.returncode == 1
            assert log.startswith("vhostblk: systemd has passed ")
            assert said in log
            assert log.count("\n") == 1
