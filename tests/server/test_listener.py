import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import pytest
import uvloop

from vhostblk.errors import VhostBlkError
from vhostblk.server import listener
from vhostblk.server.listener import PATH_MAX, SocketOptions, adopt, listen


@pytest.fixture
def path() -> Iterator[Path]:
    """Return a short path for a socket."""
    with TemporaryDirectory(prefix="vhb") as directory:
        yield Path(directory) / "s"


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


def test_only_the_owner_may_connect_unless_told(path: Path) -> None:
    """The socket is 0600, or what was asked for, whatever the umask says."""
    for options, mode in ((SocketOptions(), 0o600), (SocketOptions(mode=0o666), 0o666)):
        listener = listen(path, options)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        listener.close()
        assert not path.exists()


def test_owner_and_group_are_set(path: Path) -> None:
    """Changing to ourselves is allowed to everybody; a user that is not ours may be refused."""
    listen(path, SocketOptions(uid=os.getuid(), gid=os.getgid())).close()
    if os.getuid() == 0:
        listener = listen(path, SocketOptions(uid=12345, gid=None))
        assert path.stat().st_uid == 12345
        listener.close()


def test_a_dead_socket_is_replaced(path: Path) -> None:
    """What a killed server left behind is no obstacle."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = listen(path, SocketOptions())
    connect(path).close()
    listener.close()


def test_a_live_socket_is_refused(path: Path) -> None:
    """A second server is told, and the first one keeps its socket."""
    first = listen(path, SocketOptions())
    with pytest.raises(VhostBlkError, match="in use by another process"):
        listen(path, SocketOptions())
    connect(path).close()
    first.close()


def test_a_file_is_not_replaced(path: Path) -> None:
    """Only sockets are removed, never somebody's file."""
    path.write_text("mine")
    with pytest.raises(VhostBlkError, match="is not a socket"):
        listen(path, SocketOptions())
    assert path.read_text() == "mine"


def test_a_long_path_says_what_to_do(path: Path) -> None:
    """sun_path has 108 bytes; the error names the limit and a way out."""
    long = path.with_name("s" * 108)
    with pytest.raises(VhostBlkError, match=f"{PATH_MAX} bytes at most, not .*: choose"):
        listen(long, SocketOptions())


def test_a_missing_directory_is_one_line(path: Path) -> None:
    """The error names the path and the directory to make."""
    with pytest.raises(VhostBlkError, match=r"cannot listen on .*/none/s: .* mkdir -p .*/none,"):
        listen(path.with_name("none") / "s", SocketOptions())


def test_a_socket_nobody_may_make_or_give_away_says_why(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to the directory, or to change the owner, the error says what to do."""

    def refusing(number: int) -> Callable[..., None]:
        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return refuse

    monkeypatch.setattr(os, "chown", refusing(errno.EPERM))
    with pytest.raises(VhostBlkError, match="only root may give a socket to somebody else"):
        listen(path, SocketOptions(uid=1))
    assert not path.exists()
    monkeypatch.setattr(listener, "_bind_private", refusing(errno.EACCES))
    with pytest.raises(VhostBlkError, match="choose a directory in which you may make files"):
        listen(path, SocketOptions())


def test_somebody_elses_socket_is_not_removed(path: Path) -> None:
    """Who replaced our socket file keeps theirs when we end."""
    ours = listen(path, SocketOptions())
    path.unlink()
    theirs = listen(path, SocketOptions())
    ours.close()
    connect(path).close()
    theirs.close()
    assert not path.exists()


def test_accept_gives_one_connection_after_the_other(path: Path) -> None:
    """Connections that were made before are found later; close ends an accept that waits."""

    async def accept() -> None:
        listener = listen(path, SocketOptions())
        with connect(path), connect(path):
            for _ in range(2):
                accepted = await listener.accept()
                assert accepted is not None
                accepted.close()
        waiting = asyncio.ensure_future(listener.accept())
        await asyncio.sleep(0)
        listener.close()
        assert await waiting is None
        assert await listener.accept() is None

    uvloop.run(accept())


def test_a_listening_descriptor_is_adopted(path: Path) -> None:
    """A manager's listening socket gives connections; its file is the manager's to remove."""

    async def accept() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            sock.listen()
            listener = adopt(os.dup(sock.fileno()))
            with connect(path):
                accepted = await listener.accept()
                assert accepted is not None
                accepted.close()
            listener.close()

    uvloop.run(accept())
    assert path.exists()


def test_a_connected_descriptor_is_the_only_connection() -> None:
    """A manager's connected socket is given once; then there are no more."""

    async def accept() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            listener = adopt(ours.detach())
            accepted = await listener.accept()
            assert accepted is not None
            accepted.send(b"x")
            assert theirs.recv(1) == b"x"
            accepted.close()
            assert await listener.accept() is None
            listener.close()

    uvloop.run(accept())


def test_other_descriptors_are_refused() -> None:
    """A file, a network socket and a number that is nothing are told apart from a Unix socket."""
    with TemporaryFile() as file, pytest.raises(VhostBlkError, match="is not a socket"):
        adopt(file.fileno())
    with socket.socket() as network, pytest.raises(VhostBlkError, match="not a Unix stream"):
        adopt(network.fileno())
    with pytest.raises(VhostBlkError, match="fd 1000000 is not a socket"):
        adopt(1000000)
