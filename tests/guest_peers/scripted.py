"""
A back-end that does as it is told: records every message, answers what the script says.

It runs on a thread, at the other end of a socket pair until that is closed, or behind a path.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vhostblk.guest import wire
from vhostblk.guest.connection import Connection
from vhostblk.guest.errors import GuestError
from vhostblk.guest.inflight import LAYOUT, Inflight
from vhostblk.spec import vhost_user as vu
from vhostblk.spec.vhost_user import Request


@dataclass(slots=True)
class Scripted:
    """
    What is known of the conversation.

    Args:
        front: The front-end's end of the pair.
        answers: Payload of the reply to each request that has one.
        nacks: Requests to refuse, with the code.
        seen: Messages, in order; their descriptors are closed.
        status: What SET_STATUS said last, and GET_STATUS says.
    """

    front: socket.socket
    answers: Mapping[int, bytes]
    nacks: Mapping[int, int] = field(default_factory=dict)
    seen: list[wire.Message] = field(default_factory=list)
    status: bytes = bytes(8)

    @property
    def names(self) -> list[str]:
        """Return the names of the messages seen; ``!`` marks those that asked for an ack."""
        return [Request(m.request).name + "!" * m.need_reply for m in self.seen]


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def offers(features: int, protocol_features: int, **others: bytes) -> dict[int, bytes]:
    """Answer as a back-end that offers these features; *others* are payloads by message name."""
    answers: dict[int, bytes] = {
        Request.GET_FEATURES: u64(features),
        Request.GET_PROTOCOL_FEATURES: u64(protocol_features),
        Request.GET_QUEUE_NUM: u64(4),
        Request.GET_MAX_MEM_SLOTS: u64(509),
        Request.SET_LOG_BASE: u64(0),
    }
    answers.update({Request[name]: payload for name, payload in others.items()})
    return answers


@contextlib.contextmanager
def scripted(
    answers: Mapping[int, bytes], nacks: Mapping[int, int] | None = None
) -> Iterator[Scripted]:
    """Run the back-end until the ``with`` block ends."""
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    backend = Scripted(front, answers, nacks or {})
    thread = threading.Thread(target=_serve, args=(backend, Connection(back, 10)))
    thread.start()
    try:
        yield backend
    finally:
        front.close()
        thread.join()


@contextlib.contextmanager
def listening(path: Path, answers: Mapping[int, bytes]) -> Iterator[list[Scripted]]:
    """
    Run the back-end at *path*, for one front-end after the other, until the ``with`` block ends.

    Yields:
        One conversation for each front-end that has connected.
    """
    conversations: list[Scripted] = []
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_accept, args=(listener, answers, conversations))
        thread.start()
        try:
            yield conversations
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(
    listener: socket.socket, answers: Mapping[int, bytes], conversations: list[Scripted]
) -> None:
    with contextlib.suppress(OSError):
        while True:
            back, _ = listener.accept()
            conversations.append(Scripted(back, answers))
            _serve(conversations[-1], Connection(back, 10))


def _serve(backend: Scripted, connection: Connection) -> None:
    with contextlib.closing(connection), contextlib.suppress(GuestError):
        while True:
            message = connection.receive("a message")
            for fd in message.fds:
                os.close(fd)
            backend.seen.append(message)
            if (
                message.request == Request.GET_INFLIGHT_FD
                and message.request not in backend.answers
            ):
                _send_region(connection, message)
                continue
            payload = _answer(backend, message)
            if payload is not None:
                connection.send(wire.message(message.request, payload, reply=True))


def _send_region(connection: Connection, asked: wire.Message) -> None:
    _, _, queues, size = LAYOUT.unpack(asked.payload)
    made = Inflight.make("libvhost-user", queues=queues, queue_size=size)
    with contextlib.closing(made):
        connection.send(wire.message(asked.request, made.pack(), reply=True), [made.fd])


def _answer(backend: Scripted, message: wire.Message) -> bytes | None:
    if message.request == Request.GET_VRING_BASE:
        return message.payload[:4] + (7).to_bytes(4, "little")
    if message.request == Request.GET_CONFIG:
        return message.payload
    if message.request == Request.SET_STATUS:
        backend.status = message.payload
    if message.request == Request.GET_STATUS:
        return backend.status
    if message.request in backend.answers:
        return backend.answers[message.request]
    if message.flags & vu.FLAG_NEED_REPLY:
        return u64(backend.nacks.get(message.request, 0))
    return None
