"""A front-end that hurries: bytes packed once, sent as fast as they are read, again and again."""

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from frontend_bytes import NEED_REPLY, VERSION, message, u64, vring

from vhostblk.guest.inflight import Inflight

SIZE = 128
REGION = 1 << 20
UVA = 0x7F00_0000_0000
DESC, AVAIL, USED = 0x1000, 0x3000, 0x5000
MQ_TO_STATUS = 0x1B22B
"""Protocol features QEMU 10.2 acks of all that were offered."""
LOG_SHMFD = 1 << 1
FEATURES = 1 << 32 | 1 << 30
REPLY_BYTES = 20
PROMPT = message(18, vring(0, 1), VERSION | NEED_REPLY)


def _send(sock: socket.socket, data: bytes, *fds: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights)


def _replies(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the back-end hung up"
        data += piece
    return data


class Hurried:
    """
    What all its connections share: guest memory with a ring, eventfds, an inflight region.

    Args:
        path: The back-end's.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._memory = os.memfd_create("hurried")
        os.truncate(self._memory, REGION)
        self._events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
        self._inflight = Inflight.make("dpdk", queues=1, queue_size=SIZE)
        self._log = os.memfd_create("log")
        os.truncate(self._log, 4096)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(self._path)
            _send(sock, message(15))
            (offered,) = struct.unpack("=12xQ", _replies(sock, REPLY_BYTES))
        self._agreed = MQ_TO_STATUS & offered

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._memory, self._log, *self._events):
            os.close(fd)
        self._inflight.close()

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Connect, start one ring with everything there is, and hang up without a stop."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(30)
            sock.connect(self._path)
            _send(sock, message(16, u64(self._agreed)) + message(3) + message(2, u64(FEATURES)))
            _send(sock, message(21), theirs.fileno())
            _send(sock, message(32, self._inflight.pack()), self._inflight.fd)
            region = struct.pack("=QQQQQ", 0, 0, REGION, UVA, 0)
            _send(sock, message(37, region), self._memory)
            if self._agreed & LOG_SHMFD:  # answered without being asked to be
                _send(sock, message(6, struct.pack("=QQ", 4096, 0)), self._log)
                _replies(sock, REPLY_BYTES)
            _send(sock, message(13, u64(0)), self._events[1])
            _send(sock, message(14, u64(0)), self._events[2])
            addresses = struct.pack("=IIQQQQ", 0, 0, UVA + DESC, UVA + USED, UVA + AVAIL, USED)
            _send(sock, message(8, vring(0, SIZE)) + message(9, addresses))
            self.kick(sock)
            _send(sock, PROMPT)
            assert _replies(sock, REPLY_BYTES)[-8:] == bytes(8)
            yield sock

    def kick(self, sock: socket.socket) -> None:
        """Start the ring at its beginning."""
        _send(sock, message(10, vring(0, 0)))
        _send(sock, message(12, u64(0)), self._events[0])

    def restart(self, sock: socket.socket) -> None:
        """Stop the ring and start it again."""
        _send(sock, message(11, vring(0, 0)))
        assert _replies(sock, REPLY_BYTES)[-8:] == bytes(8)
        self.kick(sock)
