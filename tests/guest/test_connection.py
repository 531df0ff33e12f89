import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from vhostblk.guest import DeadlineError, DisconnectedError, GuestError, wire
from vhostblk.guest.connection import Connection, close_all
from vhostblk.spec.vhost_user import Request


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, timeout=5)
    with theirs:
        yield connection, theirs
    connection.close()


Pair = tuple[Connection, socket.socket]
REPLY = wire.message(Request.GET_FEATURES, bytes(range(8)), reply=True)


def test_receive_takes_exactly_one_message(pair: Pair) -> None:
    """Two messages that arrive together are two messages."""
    connection, peer = pair
    peer.sendall(REPLY + wire.message(Request.GET_STATUS, reply=True))
    first, second = connection.receive("one"), connection.receive("two")
    assert (first.request, first.flags, first.payload) == (1, 5, bytes(range(8)))
    assert (second.request, second.flags, second.payload) == (40, 5, b"")


def test_receive_waits_for_every_byte(pair: Pair) -> None:
    """A message that arrives byte by byte is one message."""
    connection, peer = pair

    def dribble() -> None:
        for byte in REPLY:
            peer.sendall(bytes([byte]))

    thread = threading.Thread(target=dribble)
    thread.start()
    assert connection.receive("it").payload == bytes(range(8))
    thread.join()


def test_descriptors_travel_both_ways(pair: Pair) -> None:
    """Descriptors go with the first byte, and come in with the message, close-on-exec."""
    connection, peer = pair
    read_end, write_end = os.pipe()
    connection.send(REPLY, [write_end])
    data, fds, _, _ = socket.recv_fds(peer, 100, 8)
    assert data == REPLY
    socket.send_fds(peer, [REPLY], fds)
    close_all([write_end, *fds])
    message = connection.receive("it")
    assert not os.get_inheritable(message.fds[0])
    os.write(message.fds[0], b"through")
    assert os.read(read_end, 7) == b"through"
    close_all([read_end, *message.fds])


@pytest.mark.parametrize("cut", range(len(REPLY)))
def test_close_within_a_message_is_a_disconnect(pair: Pair, cut: int) -> None:
    """A message that ends early is not a message, wherever it ends."""
    connection, peer = pair
    peer.sendall(REPLY[:cut])
    peer.close()
    with pytest.raises(DisconnectedError, match="closed while waiting for the end"):
        connection.receive("the end")


def test_receive_gives_up_at_the_deadline(pair: Pair) -> None:
    """Silence is an error that says what was waited for."""
    connection, peer = pair
    peer.sendall(REPLY[:13])
    with pytest.raises(DeadlineError, match="timed out waiting for the rest"):
        connection.receive("the rest", timeout=0.01)


def test_receive_refuses_absurd_sizes(pair: Pair) -> None:
    """A size no message has is an error at once, not a wait for gigabytes."""
    connection, peer = pair
    peer.sendall(wire.HEADER.pack(1, 5, 1 << 30))
    with pytest.raises(GuestError, match="1073741824 bytes"):
        connection.receive("a reply")


def test_send_to_a_closed_socket_is_a_disconnect(pair: Pair) -> None:
    """Nobody reads any more: that is an error, not a signal."""
    connection, peer = pair
    peer.close()
    with pytest.raises(DisconnectedError):
        connection.send(REPLY)


def test_expect_close(pair: Pair) -> None:
    """Waiting for the other side to hang up ignores what it still sends."""
    connection, peer = pair
    with pytest.raises(DeadlineError, match="to close the connection"):
        connection.expect_close(timeout=0.01)
    peer.sendall(b"last words")
    peer.close()
    connection.expect_close()


def test_connect_to_nobody_names_the_path() -> None:
    """A missing socket is an error that names it."""
    with pytest.raises(DisconnectedError, match="cannot connect to /nonexistent/sock"):
        Connection.connect("/nonexistent/sock", 1)


def test_the_sender_is_told_once_it_was_asked_for(pair: Pair) -> None:
    """Whoever sends, not who made the socket; descriptors come as before."""
    connection, peer = pair
    peer.sendall(REPLY)
    connection.receive("one")
    assert not connection.sender
    connection.identify()
    program = "import socket, sys; peer = socket.socket(fileno=int(sys.argv[1]))"
    program += f"; socket.send_fds(peer, [{REPLY!r}], [0, 1])"
    command = [sys.executable, "-c", program, str(peer.fileno())]
    with subprocess.Popen(command, pass_fds=[peer.fileno()]) as child:
        message = connection.receive("two")
    close_all(message.fds)
    assert (connection.sender, len(message.fds)) == (child.pid, 2)
