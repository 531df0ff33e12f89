"""A front-end whose connection ends in the middle of what it sends."""

from collections.abc import Sequence
from pathlib import Path

from vhostblk.guest import FrontEnd
from vhostblk.guest.errors import DisconnectedError

HEADER = 12
CUTS = ("before", "in the header", "behind the header", "in the payload", "one byte short", "after")


def place(cut: str, length: int) -> int:
    """Return how many bytes of a message of *length* go out."""
    match cut:
        case "before":
            return 0
        case "in the header":
            return 5
        case "behind the header":
            return min(HEADER, length - 1)
        case "in the payload":
            return min((HEADER + length) // 2, length - 1)
        case "one byte short":
            return length - 1
        case _:
            return length


def cut_frontend(path: Path, message: int, cut: str, sent: list[int]) -> FrontEnd:
    """
    Connect with a front-end that hangs up in its *message*th message, counted from 0.

    Args:
        path: The back-end's.
        message: Which.
        cut: Where, one of `CUTS`; descriptors go with the first byte.
        sent: Gets the number of every request that was begun.
    """
    frontend = FrontEnd.connect(path)
    send = frontend.connection.send

    def cut_send(data: bytes, fds: Sequence[int] = ()) -> None:
        sent.append(int.from_bytes(data[:4], "little"))
        if len(sent) <= message:
            send(data, fds)
            return
        if length := place(cut, len(data)):
            send(data[:length], fds)
        frontend.close()
        raise DisconnectedError(f"cut {cut} of message {message}")

    frontend.connection.send = cut_send  # type: ignore[method-assign]
    return frontend
