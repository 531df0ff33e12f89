"""Who is at the other end of a Unix socket."""

import socket
import struct
from dataclasses import dataclass

_UCRED = struct.Struct("=iII")
"""pid, uid, gid; Linux, include/linux/socket.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """
    A process that has connected.

    Args:
        pid: 0: of another PID namespace, or not known.
        uid: As it was when the process connected.
        gid: The same.
        since: When it connected, seconds since 1970.
    """

    pid: int
    uid: int
    gid: int
    since: float


def peer_of(sock: socket.socket, *, now: float) -> Peer:
    """
    Ask the kernel who has connected *sock*.

    Of a socket that was made connected (``--fd``) it is who made it.

    Args:
        sock: A connected Unix socket.
        now: Seconds since 1970.
    """
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(data)
    return Peer(pid=pid, uid=uid, gid=gid, since=now)
