"""The control socket: whoever is on it, nobody else is the worse for it."""

import asyncio
import json
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from server_kit.control import Client, ask, client, request

from vhostblk.server import control as control_module
from vhostblk.server.control import MAX_CONNECTIONS, MAX_LINE, Control
from vhostblk.server.jsonrpc import Dispatcher, Json, method
from vhostblk.server.listener import SocketOptions, listen

BIG = "x" * (1 << 22)


class Doors:
    """A method that waits, and others that do not."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._open = asyncio.Event()
        self.waiting = 0
        self.done = 0

    def release(self) -> None:
        """Let all go that wait; from any thread."""
        self._loop.call_soon_threadsafe(self._open.set)

    async def wait(self) -> Json:
        self.waiting += 1
        await self._open.wait()
        self.done += 1
        return "waited"

    async def hello(self) -> Json:
        return "hello"

    async def big(self) -> Json:
        return BIG


@asynccontextmanager
async def controlled(path: Path) -> AsyncIterator[tuple[Doors, Control]]:
    doors = Doors()
    table = {one.__name__: method(one) for one in (doors.wait, doors.hello, doors.big)}
    control = Control(listen(path, SocketOptions()), Dispatcher(table))
    control.start()
    try:
        yield doors, control
    finally:
        doors.release()
        await control.close()


def check(path: Path, script: Callable[[Doors], None]) -> None:
    """Run *script* in a thread, against a control socket."""

    async def run() -> None:
        async with controlled(path) as (doors, _):
            await asyncio.to_thread(script, doors)

    uvloop.run(run())
    assert not path.exists()


def wait_for(condition: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(2000):
        if condition():
            return
        waited.wait(0.005)
    raise AssertionError("it never came true")


HELLO = {"jsonrpc": "2.0", "result": "hello", "id": 1}


def test_one_line_is_one_answer(tmp_path: Path) -> None:
    """However the bytes arrive; empty lines say nothing, a notification is not answered."""

    def script(_: Doors) -> None:
        with client(tmp_path / "c") as one:
            for byte in (request("hello") + "\r\n").encode():
                one.sock.sendall(bytes([byte]))
            assert one.answer() == HELLO
            one.send("", "  ", '{"jsonrpc": "2.0", "method": "hello"}', request("hello"))
            assert one.answer() == HELLO
            one.send(request("hello"), request("nobody"), request("hello"))
            answers = [one.answer() for _ in range(3)]
            assert (answers[0], answers[2]) == (HELLO, HELLO)
            assert isinstance(answers[1], dict)
            assert answers[1].keys() == {"jsonrpc", "error", "id"}

    check(tmp_path / "c", script)


def test_socket_is_its_owners_only(tmp_path: Path) -> None:
    """Mode 0600."""

    def script(_: Doors) -> None:
        assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o600

    check(tmp_path / "c", script)


def test_longest_line_and_a_longer_one(tmp_path: Path) -> None:
    """65536 bytes are read; one more is told of and ends that connection, not the socket."""

    def script(_: Doors) -> None:
        text = request("hello")
        with client(tmp_path / "c") as one:
            assert one.ask(text.ljust(MAX_LINE - 1)) == HELLO
            one.send(text.ljust(MAX_LINE))
            told = json.loads(one.line())
            assert told["error"] == {
                "code": -32600,
                "message": f"a line has {MAX_LINE} bytes at most",
            }
            assert one.line() == b""
        with client(tmp_path / "c") as one:
            one.sock.sendall(b"x" * (MAX_LINE + 10))  # and never a newline
            assert json.loads(one.line())["error"]["code"] == -32600
        assert ask(tmp_path / "c", text) == HELLO

    check(tmp_path / "c", script)


def test_garbage_is_answered_and_half_a_line_is_dropped(tmp_path: Path) -> None:
    """Neither bytes that are no text nor a client that leaves in a line does any harm."""

    def script(_: Doors) -> None:
        with client(tmp_path / "c") as one:
            assert isinstance(one.ask(b"\x00\xff\xfe"), dict)
            one.sock.sendall(b'{"jsonrpc"')
            one.sock.shutdown(socket.SHUT_WR)
            assert one.line() == b""
        assert ask(tmp_path / "c", request("hello")) == HELLO

    check(tmp_path / "c", script)


def test_slow_request_holds_up_its_own_connection_only(tmp_path: Path) -> None:
    """Others are answered meanwhile; a client that leaves does not stop what it asked for."""

    def script(doors: Doors) -> None:
        path = tmp_path / "c"
        with client(path) as slow, client(path) as gone:
            slow.send(request("wait"), request("hello"))
            gone.send(request("wait"))
            wait_for(lambda: doors.waiting == 2)
            gone.close()
            assert ask(path, request("hello")) == HELLO
            doors.release()
            answers = [slow.answer(), slow.answer()]
            assert isinstance(answers[0], dict)
            assert answers[0]["result"] == "waited"
            assert answers[1] == HELLO
        wait_for(lambda: doors.done == 2)

    check(tmp_path / "c", script)


def test_silent_clients_make_room(tmp_path: Path) -> None:
    """The one that has been silent longest is hung up on, even in the middle of a line."""

    def script(_: Doors) -> None:
        path = tmp_path / "c"
        crowd = [Client(path) for _ in range(MAX_CONNECTIONS)]
        for one in crowd:  # so that all of them are there, in this order
            assert one.ask(request("hello")) == HELLO
        crowd[1].sock.sendall(b"half a line")
        with client(path) as late:
            assert late.ask(request("hello")) == HELLO
        assert crowd[0].line() == b"", "the oldest"
        with client(path) as later:
            assert later.ask(request("hello")) == HELLO
            for one in crowd[2:]:
                assert one.ask(request("hello")) == HELLO
        for one in crowd:
            one.close()

    check(tmp_path / "c", script)


def test_a_crowd_that_is_being_answered_keeps_its_place(tmp_path: Path) -> None:
    """While all are waited for, a new one is told so; then there is room again."""

    def script(doors: Doors) -> None:
        path = tmp_path / "c"
        crowd = [Client(path) for _ in range(MAX_CONNECTIONS)]
        for one in crowd:
            one.send(request("wait"))
        wait_for(lambda: doors.waiting == MAX_CONNECTIONS)
        with client(path) as late:
            told = json.loads(late.line())
            assert told["error"]["code"] == -32002
            assert late.line() == b""
        doors.release()
        for one in crowd:
            assert b"waited" in one.line()
            one.close()
        assert ask(path, request("hello")) == HELLO

    check(tmp_path / "c", script)


def test_client_that_takes_no_answer_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is dropped when its time is over, and others are served meanwhile."""
    monkeypatch.setattr(control_module, "SEND_SECONDS", 0.05)

    def script(_: Doors) -> None:
        with client(tmp_path / "c") as deaf:
            deaf.send(request("big"))
            assert ask(tmp_path / "c", request("hello")) == HELLO
            threading.Event().wait(0.1)
            assert len(deaf.line()) < len(BIG)

    check(tmp_path / "c", script)


def test_end_waits_for_what_was_asked(tmp_path: Path) -> None:
    """Closing answers who is waited for, and hangs up on the silent."""
    path = tmp_path / "c"

    async def run() -> tuple[bytes, bytes]:
        async with controlled(path) as (doors, control):
            busy, silent = await asyncio.to_thread(lambda: (Client(path), Client(path)))
            await asyncio.to_thread(busy.send, request("wait"))
            await asyncio.to_thread(wait_for, lambda: doors.waiting == 1)
            closing = asyncio.ensure_future(control.close())
            await asyncio.sleep(0.01)
            assert not closing.done()
            doors.release()
            await closing
            lines = await asyncio.to_thread(busy.line), await asyncio.to_thread(silent.line)
            busy.close()
            silent.close()
            return lines

    answered, hung_up = uvloop.run(run())
    assert b"waited" in answered
    assert hung_up == b""
