"""``vhostblk ctl``: what is typed, what is read, how it ends."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import running

from vhostblk.cli import main

LIST = [
    {
        "name": "vm0.sock",
        "disk": "memory:4M",
        "size": 4 << 20,
        "read_only": False,
        "socket_path": "/run/vm0.sock",
        "front_end_connected": True,
    },
    {
        "name": "b",
        "disk": "file:b.img,read-only=on",
        "size": 512 * 3,
        "read_only": True,
        "socket_path": None,
        "front_end_connected": False,
    },
]


class Said:
    """A server that answers what it is told to, and keeps what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[dict[str, object]] = []
        self.answers: list[bytes] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(path))
        self._sock.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._sock.accept()
            with connection, connection.makefile("rb") as lines:
                line = lines.readline()
                if not line:
                    return
                self.asked.append(json.loads(line))
                connection.sendall(self.answers.pop(0))

    def result(self, result: object) -> None:
        self.raw(json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode() + b"\n")

    def raw(self, line: bytes) -> None:
        self.answers.append(line)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(str(self.path))
        self._thread.join(10)
        self._sock.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Said]:
    """Answer as told."""
    one = Said(tmp_path / "c")
    yield one
    one.close()


def ctl(server: Said, *words: str) -> int:
    return main.main(["ctl", "--control", str(server.path), *words])


def test_list_is_a_table(server: Said, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a device; sizes with their unit."""
    server.result(LIST)
    assert ctl(server, "list") == 0
    assert capsys.readouterr().out == (
        "NAME      SIZE  ACCESS     FRONT-END  SOCKET         DISK\n"
        "vm0.sock  4M    writable   connected  /run/vm0.sock  memory:4M\n"
        "b         1536  read-only  -          -              file:b.img,read-only=on\n"
    )
    server.result([])
    assert ctl(server, "list") == 0
    assert capsys.readouterr().out == "no devices\n"


@pytest.mark.parametrize("words", [("--json", "list"), ("list", "--json")])
def test_json_is_the_answer_as_it_came(
    server: Said, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """Wherever --json stands."""
    server.result(LIST)
    assert ctl(server, *words) == 0
    assert json.loads(capsys.readouterr().out) == LIST


def test_call_sends_what_it_is_given(server: Said, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters by name, in order, or none; the result is printed as JSON."""
    for text, params in (('{"device": "a"}', {"device": "a"}), ("[1]", [1]), (None, None)):
        server.result({"x": None})
        assert ctl(server, "call", "do", *([] if text is None else [text])) == 0
        assert capsys.readouterr().out == '{"x": null}\n'
        assert server.asked[-1].get("params") == params
        assert server.asked[-1]["method"] == "do"


@pytest.mark.parametrize("text", ["{", "3", '"x"', "null"])
def test_call_takes_no_other_parameters(
    server: Said, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """Not sent, told in one line."""
    assert ctl(server, "call", "do", text) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert server.asked == []


def test_error_of_the_server_is_one_line(server: Said, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own words, status 1."""
    error = {"code": -32000, "message": "cannot: do that"}
    server.raw(json.dumps({"jsonrpc": "2.0", "id": 1, "error": error}).encode() + b"\n")
    assert ctl(server, "shutdown") == 1
    assert capsys.readouterr().err == "vhostblk: cannot: do that\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "hung up without an answer"),
        (b"SSH-2.0\n", "does not speak JSON-RPC"),
        (b"[]\n", "does not speak JSON-RPC"),
        (b'{"jsonrpc": "2.0"}\n', "does not speak JSON-RPC"),
        (b'{"error": 3}\n', "does not speak JSON-RPC"),
        (b'{"result"', "does not speak JSON-RPC"),
    ],
)
def test_stranger_on_the_socket_is_told(
    server: Said, capsys: pytest.CaptureFixture[str], line: bytes, says: str
) -> None:
    """Whatever it says."""
    server.raw(line)
    assert ctl(server, "list") == 1
    assert capsys.readouterr().err == f"vhostblk: {server.path}: who listens there {says}\n"


def test_silence_has_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--timeout; what was asked may be done all the same, and that is said."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(tmp_path / "c"))
        silent.listen()
        words = ["ctl", "--control", str(tmp_path / "c"), "--timeout", "0.05", "list"]
        assert main.main(words) == 1
    assert "no answer within 0.05 s" in capsys.readouterr().err


def test_no_socket_no_server_no_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is told in a line that says what to do."""
    path = tmp_path / "c"
    assert main.main(["ctl", "--control", str(path), "list"]) == 1
    assert "no such socket: is it the path given to" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    assert main.main(["ctl", "--control", str(path), "list"]) == 1
    assert "nobody listens" in capsys.readouterr().err
    assert main.main(["ctl", "list"]) == 2
    assert "Missing option '--control'" in capsys.readouterr().err
    monkeypatch.setenv("VHOSTBLK_CONTROL", str(path))
    assert main.main(["ctl", "list"]) == 1
    assert "nobody listens" in capsys.readouterr().err


def test_status_of_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one device, of all; then the server is told to end, and does with status 0."""
    words = ("--control", tmp_path / "c", "--engine", "reference", "memory:1M")
    with running.serving(*words, socket=tmp_path / "s") as server:
        here = ["ctl", "--control", str(tmp_path / "c")]
        assert main.main([*here, "status", "s"]) == 0
        one = capsys.readouterr().out
        assert one.splitlines()[0].split() == ["name", "s"]
        assert main.main([*here, "status"]) == 0
        assert capsys.readouterr().out == one
        assert main.main([*here, "version"]) == 0
        assert f"reference engine, process {server.pid}" in capsys.readouterr().out
        assert main.main([*here, "status", "x"]) == 1
        assert capsys.readouterr().err == "vhostblk: no device is called 'x'; there are s\n"
        assert main.main([*here, "shutdown"]) == 0
        assert capsys.readouterr().out == "the server ends\n"
        assert server.wait(running.TIMEOUT_S) == 0
    assert not (tmp_path / "c").exists()
