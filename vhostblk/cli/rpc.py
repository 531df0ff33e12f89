"""A client of the control socket: one request, one answer."""

import errno
import json
import os
import socket
from pathlib import Path

from vhostblk.errors import VhostBlkError
from vhostblk.server.jsonrpc import Json

CHUNK = 1 << 16


def call(path: Path, method: str, params: Json, *, seconds: float) -> Json:
    """
    Call a method of a server.

    Args:
        path: Its control socket.
        method: Which.
        params: By name or in order; None: nothing.
        seconds: How long an answer may take.

    Returns:
        The result.

    Raises:
        VhostBlkError: What the server says against it, or why it cannot be asked.
    """
    request: dict[str, Json] = {"jsonrpc": "2.0", "id": 1, "method": method}
    if params is not None:
        request["params"] = params
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(seconds)
            sock.connect(os.fspath(path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            line = _line(sock)
    except TimeoutError:
        raise VhostBlkError(
            f"no answer within {seconds:g} s; what was asked may still be done"
        ) from None
    except OSError as error:
        raise VhostBlkError(f"{path}: {_why_not(error)}") from error
    return _result(path, line)


def _line(sock: socket.socket) -> bytes:
    parts: list[bytes] = []
    while not parts or not parts[-1].endswith(b"\n"):
        part = sock.recv(CHUNK)
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def _why_not(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return "no such socket: is it the path given to vhostblk serve --control?"
        case errno.ECONNREFUSED:
            return "nobody listens: the server has ended"
        case errno.EACCES | errno.EPERM:
            return f"{error.strerror}: it is its owner's only, so ask as the server's user or root"
        case _:
            return error.strerror or str(error)


def _result(path: Path, line: bytes) -> Json:
    try:
        answer = json.loads(line)
        error = answer.get("error")
        if error is None:
            result: Json = answer["result"]
            return result
        text = str(error["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        what = "hung up without an answer" if not line else "does not speak JSON-RPC"
        raise VhostBlkError(f"{path}: who listens there {what}") from None
    raise VhostBlkError(text)
