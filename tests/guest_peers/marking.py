"""A back-end with a dirty log, that marks what a test has it mark: migration's negative control."""

import contextlib
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from guest_peers.rogue import FEATURES, PROTOCOL, HostView, Rogue
from vhostblk.guest import wire
from vhostblk.guest.connection import Connection
from vhostblk.spec import vhost_user as vu
from vhostblk.spec.vhost_user import ProtocolFeature, Request

PAGE = 4096
Marks = Callable[[int], list[int]]
"""Which pages are marked when that one is written."""


def honest(page: int) -> list[int]:
    return [page]


class MarkingView(HostView):
    """
    Guest memory with a dirty log.

    Args:
        marks: How it is kept.
    """

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self._marks = marks
        self._log: mmap.mmap | None = None
        self._on = False

    def write(self, gpa: int, data: bytes) -> None:
        super().write(gpa, data)
        if self._log is None or not self._on:
            return
        for page in range(gpa // PAGE, (gpa + len(data) - 1) // PAGE + 1):
            for marked in self._marks(page):
                self._log[marked // 8] |= 1 << marked % 8

    def hear(self, message: wire.Message) -> bool:
        match message.request:
            case Request.SET_LOG_BASE:
                size, offset = struct.unpack("=QQ", message.payload)
                self._log = mmap.mmap(message.fds[0], size, offset=offset)
                os.close(message.fds[0])
                return True
            case Request.SET_FEATURES:
                (features,) = struct.unpack("=Q", message.payload)
                self._on = bool(features & vu.VHOST_F_LOG_ALL)
        return super().hear(message)

    def close(self) -> None:
        super().close()
        if self._log is not None:
            self._log.close()


@contextlib.contextmanager
def marking(path: Path, marks: Marks = honest) -> Iterator[Rogue]:
    """Serve one front-end at *path* until the ``with`` block ends."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(str(path))
        listener.listen()
        backend = Rogue(
            listener,
            lambda _view, _chain: None,
            view=MarkingView(marks),
            features=FEATURES | vu.VHOST_F_LOG_ALL,
            protocol=PROTOCOL | ProtocolFeature.LOG_SHMFD,
        )

        def serve() -> None:
            connection, _ = listener.accept()
            backend.run(Connection(connection, 10))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield backend
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
