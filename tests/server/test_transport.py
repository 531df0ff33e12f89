import asyncio
import os
import socket

import pytest
import uvloop
from server_kit.left import open_fds

from vhostblk.errors import ProtocolError
from vhostblk.server.transport import Transport


def pair() -> tuple[Transport, socket.socket]:
    ours, theirs = socket.socketpair()
    return Transport(ours), theirs


def test_receive_reads_no_more_than_asked() -> None:
    """Three sends that lie together in the socket come apart again, each with its descriptor."""

    async def read() -> None:
        transport, peer = pair()
        with peer:
            for letter in b"abc":
                fd = os.eventfd(letter)
                socket.send_fds(peer, [bytes([letter]) * 4], [fd])
                os.close(fd)
            for letter in b"abc":
                data, fds = await transport.receive(4)
                assert data == bytes([letter]) * 4
                assert [os.eventfd_read(fd) for fd in fds] == [letter]
                os.close(fds[0])
            transport.close()

    uvloop.run(read())


def test_received_descriptors_are_not_inherited() -> None:
    """MSG_CMSG_CLOEXEC: a program started meanwhile gets none of them."""

    async def read() -> None:
        transport, peer = pair()
        with peer:
            socket.send_fds(peer, [b"x"], [0])
            _, fds = await transport.receive(1)
            assert not os.get_inheritable(fds[0])
            os.close(fds[0])
            transport.close()

    uvloop.run(read())


def test_receive_waits_and_ends_with_the_stream() -> None:
    """It returns what comes later, and nothing when the peer has gone."""

    async def read() -> None:
        transport, peer = pair()
        waiting = asyncio.ensure_future(transport.receive(12))
        await asyncio.sleep(0)
        peer.send(b"part")
        assert await waiting == (b"part", [])
        peer.close()
        assert await transport.receive(12) == (b"", [])
        transport.close()

    uvloop.run(read())


def test_stop_ends_a_receive_that_waits() -> None:
    """A server that ends must not wait for the front-end's next message."""

    async def stop() -> None:
        transport, peer = pair()
        with peer:
            waiting = asyncio.ensure_future(transport.receive(12))
            await asyncio.sleep(0)
            transport.stop()
            assert await waiting == (b"", [])
            peer.send(b"late")
            assert await transport.receive(12) == (b"", [])
            transport.close()
            transport.close()

    uvloop.run(stop())


def test_send_writes_all_of_a_long_reply() -> None:
    """More bytes than the socket holds arrive whole, their descriptor once."""

    async def send() -> None:
        transport, peer = pair()
        with peer:
            peer.settimeout(0)
            size = 1 << 20
            sending = asyncio.ensure_future(transport.send(bytes(size), [0]))
            loop, got, fds = asyncio.get_running_loop(), 0, 0
            await asyncio.sleep(0)
            data, received, _, _ = socket.recv_fds(peer, 4096, 8)
            got, fds = len(data), len(received)
            os.close(received[0])
            while got < size:
                got += len(await loop.sock_recv(peer, size))
            await sending
            assert (got, fds) == (size, 1)
            transport.close()

    uvloop.run(send())


def test_send_to_nobody_is_a_connection_error() -> None:
    """No SIGPIPE, and an error the session knows."""

    async def send() -> None:
        transport, peer = pair()
        peer.close()
        with pytest.raises(ConnectionError):
            await transport.send(b"x")
        transport.close()

    uvloop.run(send())


def test_descriptors_that_were_cut_off_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that lost descriptors is not taken for whole; those that came are closed."""
    monkeypatch.setattr("vhostblk.server.transport._ANCILLARY", socket.CMSG_SPACE(8))

    async def read() -> None:
        transport, peer = pair()
        with peer:
            before = open_fds()
            socket.send_fds(peer, [b"x"], [0, 0, 0, 0])
            with pytest.raises(ProtocolError, match="ulimit"):
                await transport.receive(1)
            assert open_fds() == before
            transport.close()

    uvloop.run(read())


def test_a_front_end_that_hangs_up_is_noticed_while_nobody_reads() -> None:
    """Once, and neither one that sends on nor one that is only stopped is taken for it."""

    async def watch() -> None:
        ours, theirs = socket.socketpair()
        transport = Transport(theirs)
        gone: list[bool] = []
        with transport.watched(lambda: gone.append(True)):
            ours.send(b"more")
            await asyncio.sleep(0.01)
            assert not gone
        assert (await transport.receive(4))[0] == b"more"
        with transport.watched(lambda: gone.append(True)):
            ours.close()
            await asyncio.sleep(0.01)
        assert gone == [True]
        transport.close()

    uvloop.run(watch())


def test_a_transport_that_is_stopped_while_it_is_watched_leaves_nothing() -> None:
    """The descriptor's number may be somebody else's next: nothing waits for it any more."""

    async def stop() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        number = theirs.fileno()
        transport = Transport(theirs)
        with transport.watched(lambda: pytest.fail("it is not gone")):
            transport.stop()
        assert not loop.remove_reader(number)
        with transport.watched(lambda: pytest.fail("it is not gone")):
            transport.close()
        assert not loop.remove_reader(number)
        ours.close()

    uvloop.run(stop())
