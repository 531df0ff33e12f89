import os
import socket
from collections.abc import Iterator

import pytest

from vhostblk.guest import DisconnectedError, wire
from vhostblk.guest.channel import BackendChannel
from vhostblk.spec.vhost_user import BackendRequest


@pytest.fixture
def ends() -> Iterator[tuple[BackendChannel, socket.socket]]:
    channel = BackendChannel(timeout=5)
    with socket.socket(fileno=os.dup(channel.backend_fd)) as backend:
        channel.handed_over()
        yield channel, backend
    channel.close()


Ends = tuple[BackendChannel, socket.socket]


def test_reply_only_if_asked_for(ends: Ends) -> None:
    """
    A request of the back-end is answered if it has need_reply, and only then.

    Spec: vhost-user, "REPLY_ACK".
    """
    channel, backend = ends
    for need_reply in (False, True):
        backend.sendall(wire.message(BackendRequest.CONFIG_CHANGE_MSG, need_reply=need_reply))
        message = channel.receive()
        assert (message.request, message.need_reply) == (2, need_reply)
        channel.reply(message, 5)
    assert backend.recv(100) == bytes.fromhex("02000000 05000000 08000000 0500000000000000")


def test_death_of_the_backend_is_seen(ends: Ends) -> None:
    """Our copy of the back-end's end does not keep the channel open."""
    channel, backend = ends
    backend.close()
    with pytest.raises(DisconnectedError):
        channel.receive()
