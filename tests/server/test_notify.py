import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from vhostblk.server.notify import notify, reloading


def test_a_manager_hears_what_is_said() -> None:
    """One datagram, a line each, to a path."""
    with TemporaryDirectory(prefix="vhb") as directory:
        path = str(Path(directory) / "n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(path)
            notify("READY=1", "STATUS=serving vm0", environ={"NOTIFY_SOCKET": path})
            assert manager.recv(100) == b"READY=1\nSTATUS=serving vm0"


def test_a_name_without_a_file_is_told_too() -> None:
    """
    An ``@`` stands for the NUL of an abstract socket.

    Source: sd_notify(3).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel finds a name
        name = manager.getsockname().decode().replace("\0", "@", 1)
        notify("STOPPING=1", environ={"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("where", [None, "", "vsock:2:1234", "/nowhere/at/all", "@" + "x" * 200])
def test_without_a_manager_nothing_happens(where: str | None) -> None:
    """Nobody asked, nobody listens, or not in a way we know: we go on."""
    notify("READY=1", environ={} if where is None else {"NOTIFY_SOCKET": where})


def test_a_reload_says_since_when() -> None:
    """
    The time is the manager's own clock, in microseconds.

    Source: sd_notify(3), RELOADING=1.
    """
    before = time.monotonic_ns() // 1000
    line, since = reloading()
    assert line == "RELOADING=1"
    name, _, number = since.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(number) <= time.monotonic_ns() // 1000
