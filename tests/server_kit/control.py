"""A client of a control socket that sends lines as they are."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vhostblk.server.jsonrpc import Json

PATIENCE = 10.0


class Client:
    """A connection to a control socket."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(path))
        self._lines = self.sock.makefile("rb")

    def send(self, *lines: str | bytes) -> None:
        for line in lines:
            self.sock.sendall((line.encode() if isinstance(line, str) else line) + b"\n")

    def line(self) -> bytes:
        """Return the next line; nothing when there will be none."""
        try:
            return self._lines.readline()
        except ConnectionError:
            return b""

    def answer(self) -> Json:
        answer: Json = json.loads(self.line())
        return answer

    def ask(self, line: str | bytes) -> Json:
        self.send(line)
        return self.answer()

    def close(self) -> None:
        self._lines.close()
        self.sock.close()


@contextmanager
def client(path: Path) -> Iterator[Client]:
    """Connect, and hang up behind it."""
    one = Client(path)
    try:
        yield one
    finally:
        one.close()


def ask(path: Path, line: str | bytes) -> Json:
    """Ask one thing on a connection of its own."""
    with client(path) as one:
        return one.ask(line)


def request(method: str, **params: object) -> str:
    """Return the line of a request with id 1."""
    asked: dict[str, object] = {"jsonrpc": "2.0", "id": 1, "method": method}
    if params:
        asked["params"] = params
    return json.dumps(asked)
