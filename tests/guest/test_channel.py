import os
import socket
from collections.abc import Iterator

import pytest

from vhostblk.guest import DeadlineError, DisconnectedError, GuestError, wire
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


@pytest.mark.parametrize("served", [False, True])
def test_one_kind_is_waited_for(ends: Ends, served: bool) -> None:  # noqa: FBT001
    """A request is had from the socket, or from whoever serves that; another kind is an error."""
    channel, backend = ends
    channel.served = served
    for kind in (BackendRequest.CONFIG_CHANGE_MSG, BackendRequest.VRING_CALL):
        if served:
            channel.others.put(wire.Message(kind, 1))
        else:
            backend.sendall(wire.message(kind))
    assert channel.wait_for(BackendRequest.CONFIG_CHANGE_MSG, 1).request == 2
    with pytest.raises(GuestError, match="request 4 came instead of back-end request 2"):
        channel.wait_for(BackendRequest.CONFIG_CHANGE_MSG, 1)
    with pytest.raises(DeadlineError, match="request"):
        channel.wait_for(BackendRequest.CONFIG_CHANGE_MSG, 0.01)
