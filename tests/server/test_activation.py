import fcntl
import socket
import subprocess
import sys

import activated
import pytest

from vhostblk.server.activation import Passed, expected, passed_sockets

PID = 4711


def environ(**more: str) -> dict[str, str]:
    return {"LISTEN_PID": str(PID), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "vm0:vm1", **more}


def test_sockets_come_by_name_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Descriptors from 3 on, closed at exec; the variables are gone for our children.

    Source: sd_listen_fds(3).
    """
    told: list[tuple[int, int, int]] = []
    monkeypatch.setattr(fcntl, "fcntl", lambda *one: told.append(one))
    variables = environ(OTHER="stays", LISTEN_PIDFDID="12")
    assert expected(variables, PID)
    assert passed_sockets(variables, PID) == (Passed("vm0", 3), Passed("vm1", 4))
    assert told == [(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC) for fd in (3, 4)]
    assert variables == {"OTHER": "stays"}
    assert passed_sockets(variables, PID) == ()
    assert not expected(variables, PID)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"LISTEN_FDS": "1"},
        environ(LISTEN_PID="4712"),
        environ(LISTEN_PID=""),
        environ(LISTEN_FDS="-1"),
        environ(LISTEN_FDS="x"),
        environ(LISTEN_FDS="0"),
    ],
)
def test_sockets_of_others_are_left_alone(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was meant for a parent of ours, or is no number, is nothing; it is removed, too."""
    monkeypatch.setattr(fcntl, "fcntl", lambda *_: pytest.fail("not ours"))
    assert passed_sockets(variables, PID) == ()
    assert not variables


def test_sockets_without_names_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few names, or none, cost no socket."""
    monkeypatch.setattr(fcntl, "fcntl", lambda *_: None)
    assert passed_sockets(environ(LISTEN_FDNAMES=""), PID) == (
        Passed("unknown", 3),
        Passed("unknown", 4),
    )
    assert [one.name for one in passed_sockets(environ(LISTEN_FDNAMES="a"), PID)] == [
        "a",
        "unknown",
    ]


CODE = """
import os, sys
from vhostblk.server.activation import passed_sockets
(one,) = passed_sockets(os.environ, os.getpid())
print(one.name, one.fd, os.get_inheritable(one.fd), "LISTEN_FDS" in os.environ)
"""
PROGRAM = [sys.executable, "-c", CODE]


def test_a_real_descriptor_is_not_passed_on() -> None:
    """Started as systemd does, with the socket at 3, what we start in turn does not get it."""
    with socket.socket(socket.AF_UNIX) as sock:
        said = subprocess.run(
            [sys.executable, activated.__file__, f"{sock.fileno()}:vm0", "--", *PROGRAM],
            pass_fds=[sock.fileno()],
            capture_output=True,
            text=True,
            check=True,
        )
    assert said.stdout == "vm0 3 False False\n"
