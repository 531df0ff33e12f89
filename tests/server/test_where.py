import os
import socket
from pathlib import Path

import pytest

from vhostblk.errors import VhostBlkError
from vhostblk.server.activation import Passed
from vhostblk.server.connector import Connector
from vhostblk.server.listener import Listener, SocketOptions
from vhostblk.server.where import Where, where

VM0, VM1 = Passed("vm0", 3), Passed("vm1", 4)


def test_each_way_has_its_name() -> None:
    """What is asked for is what is served, and says what the device is called."""
    assert where("/run/a.sock", None, None, []) == Where(
        name="a.sock", listen_on=Path("/run/a.sock")
    )
    assert where(None, Path("/run/b"), None, []) == Where(name="b", connect_to=Path("/run/b"))
    assert where(None, None, 0, []) == Where(name="fd 0", fd=0)
    assert where(None, None, None, [VM0]) == Where(name="vm0", fd=3)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((None, None, None, []), "say where to serve"),
        (("a", "b", None, []), "say where to serve"),
        (("a", None, 3, []), "say where to serve"),
        (("a", None, None, [VM0]), r"systemd has passed a socket \(vm0\), and another place"),
        ((None, None, None, [VM0, VM1]), r"passed 2 sockets \(vm0, vm1\): one disk has one"),
    ],
)
def test_one_place_must_be_said(
    arguments: tuple[str | None, str | None, int | None, list[Passed]], line: str
) -> None:
    """Nothing, and more than one, are refused: no socket is quietly left without a server."""
    with pytest.raises(VhostBlkError, match=line):
        where(*arguments)


def test_each_way_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listening makes the socket, connecting needs none, a descriptor is taken over."""
    monkeypatch.chdir(tmp_path)
    path = Path("s")
    ours = where(path, None, None, []).open(SocketOptions(), "s")
    assert isinstance(ours, Listener)
    assert path.is_socket()
    assert isinstance(where(None, "t", None, []).open(SocketOptions(), "t"), Connector)
    with socket.socket(socket.AF_UNIX) as sock:
        adopted = where(None, None, os.dup(sock.fileno()), []).open(SocketOptions(), "fd")
        adopted.close()
    ours.close()
