import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import uvloop

from vhostblk.errors import VhostBlkError
from vhostblk.server.connector import LAST_SECONDS, Backoff, Connector, connect
from vhostblk.server.listener import PATH_MAX
from vhostblk.server.log import Log

LOG = Log("vhostblk.test", "vm0")


@pytest.fixture
def path() -> Iterator[Path]:
    """Return a short path for a socket."""
    with TemporaryDirectory(prefix="vhb") as directory:
        yield Path(directory) / "s"


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(1)
    return sock


class Clock:
    """Time that passes only in `sleep`, where something may happen at a given moment."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self.then: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        self.then()


def connector(path: Path, clock: Clock) -> Connector:
    return Connector(path, LOG, clock=clock, sleep=clock.sleep)


def test_tries_are_at_most_a_second_apart() -> None:
    """The first is at once, the second 10 ms later, then doubled up to a bound."""
    backoff = Backoff(lambda: 0.0)
    waits = [backoff.seconds() for _ in range(10)]
    assert waits == [0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, LAST_SECONDS, LAST_SECONDS]


def test_a_front_end_that_hangs_up_at_once_is_not_pestered() -> None:
    """A connection counts as a success only if it lasted: no loop of connects without a pause."""
    clock = Clock()
    backoff = Backoff(clock)
    waits = []
    for _ in range(4):
        waits.append(backoff.seconds())
        backoff.connected()
    assert waits == [0, 0.01, 0.02, 0.04]
    clock.now += LAST_SECONDS
    assert backoff.seconds() == 0


def test_it_waits_until_somebody_listens(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However many tries it takes, one line says that we wait and one that we are connected."""
    caplog.set_level("INFO", logger="vhostblk")
    clock = Clock()
    servers: list[socket.socket] = []

    def appear() -> None:
        if len(clock.slept) == 20:
            servers.append(listening(path))

    async def accept() -> None:
        clock.then = appear
        source = connector(path, clock)
        sock = await source.accept()
        assert sock is not None
        sock.send(b"x")
        ours = servers[0].accept()[0]
        assert ours.recv(1) == b"x"
        ours.close()
        sock.close()
        servers[0].close()
        source.close()

    uvloop.run(accept())
    assert len(clock.slept) == 20
    assert caplog.messages == [
        f"vm0: waiting for a front-end to listen on {path} (it is not there)",
        f"vm0: connected to {path}",
    ]


def test_another_reason_is_another_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A socket nobody listens on, a file, a full backlog: each is named, once."""
    caplog.set_level("INFO", logger="vhostblk")
    clock = Clock()
    opened: list[socket.socket] = []

    def change() -> None:
        match len(clock.slept):
            case 3:
                listening(path).close()
            case 6:
                path.unlink()
                path.touch()
            case 9:
                path.unlink()
                opened.append(listening(path))
                for _ in range(2):  # a backlog of 1 holds two
                    opened.append(socket.socket(socket.AF_UNIX))
                    opened[-1].connect(str(path))
            case 12:
                source.close()

    clock.then = change
    source = connector(path, clock)
    assert uvloop.run(source.accept()) is None
    for one in opened:
        one.close()
    assert [line.rpartition(" (")[2] for line in caplog.messages] == [
        "it is not there)",
        "nobody listens)",
        "what is there is no socket)",
        "somebody else is connected)",
    ]


def test_close_ends_a_wait(path: Path) -> None:
    """Who is told to stop does not wait for the next try."""

    async def accept() -> None:
        source = Connector(path, LOG)
        waiting = asyncio.ensure_future(source.accept())
        for _ in range(3):
            await asyncio.sleep(0)
        source.close()
        assert await asyncio.wait_for(waiting, 0.2) is None
        assert await source.accept() is None

    uvloop.run(accept())


def test_what_can_never_work_is_said_at_once(path: Path) -> None:
    """A file, a directory and a name that is too long are errors that say what to do."""
    path.touch()
    with pytest.raises(VhostBlkError, match="it is no socket: say where QEMU listens"):
        connect(path, LOG)
    with pytest.raises(VhostBlkError, match="it is a directory"):
        connect(path.parent, LOG)
    with pytest.raises(VhostBlkError, match=f"{PATH_MAX} bytes at most"):
        connect(path.with_name("s" * 108), LOG)
    with pytest.raises(VhostBlkError, match=r"cannot connect to .*/s/s: Not a directory"):
        connect(path / "s", LOG)


def test_a_socket_that_is_not_for_us_is_said_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to write to it nobody connects: the error says who needs it."""
    with listening(path):
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
        with pytest.raises(VhostBlkError, match=f"Permission denied: .* chown {os.geteuid()} "):
            connect(path, LOG)


def test_later_nothing_is_final(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A socket that is not for us any more may be again: it is told, and tried further."""
    caplog.set_level("INFO", logger="vhostblk")
    clock = Clock()

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def stop() -> None:
        if len(clock.slept) == 5:
            source.close()

    monkeypatch.setattr(socket.socket, "connect", refuse)
    clock.then = stop
    source = connector(path, clock)
    assert uvloop.run(source.accept()) is None
    assert caplog.messages == [
        f"vm0: waiting for a front-end to listen on {path} (Permission denied)"
    ]
