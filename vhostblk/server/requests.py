"""
Our own requests to the front-end, on the socket of SET_BACKEND_REQ_FD.

Nothing here makes a message of the front-end's wait: it may not answer before we have.
"""

import asyncio
import os
import socket
from collections import deque
from errno import EINVAL, EPIPE

from vhostblk.errors import ProtocolError, Refused
from vhostblk.protocol.channel import Channel, IotlbMiss
from vhostblk.server.log import Log
from vhostblk.server.transport import Transport


class Requests:
    """
    Requests out, acks in.

    Args:
        fd: A connected socket; owned, also where it is refused.
        log: For what an operator should know.

    Raises:
        Refused: It is no socket.
    """

    def __init__(self, fd: int, log: Log) -> None:
        sock = _socket(fd)
        self._log = log
        self._channel = Channel()
        self._acks: deque[asyncio.Future[int]] = deque()
        self._unsent: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._closed = False
        self._writer = Transport(sock)
        self._reader = Transport(sock.dup())
        self._tasks = (asyncio.ensure_future(self._write()), asyncio.ensure_future(self._read()))

    def ask(self, message: IotlbMiss) -> asyncio.Future[int]:
        """
        Send a request that asks for an ack, behind those before it.

        Returns:
            What becomes the value of the ack: 0 for done; EPIPE when none can come any more.
        """
        ack = asyncio.get_running_loop().create_future()
        if self._closed:
            ack.set_result(EPIPE)
            return ack
        self._unsent.append(self._channel.encode(message))
        self._acks.append(ack)
        self._more.set()
        return ack

    async def _write(self) -> None:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                while self._unsent:
                    await self._writer.send(self._unsent.popleft())
        except OSError:
            self._end()

    async def _read(self) -> None:
        try:
            while True:
                data, fds = await self._reader.receive(self._channel.want)
                if not data:
                    break
                ack = self._channel.receive(data, fds)
                if ack is not None:
                    _settle(self._acks.popleft(), ack.value)
        except (ProtocolError, OSError) as error:
            self._log.warning("the front-end erred on the back-end's channel: %s", error)
        self._end()

    def _end(self) -> None:
        self._closed = True
        while self._acks:
            _settle(self._acks.popleft(), EPIPE)

    def close(self) -> None:
        """Hang up; calling again does nothing."""
        for task in self._tasks:
            task.cancel()
        self._end()
        self._writer.close()
        self._reader.close()
        self._channel.close()


def _socket(fd: int) -> socket.socket:
    try:
        return socket.socket(fileno=fd)
    except OSError as error:
        os.close(fd)
        raise Refused(EINVAL, f"the back-end's channel is no socket: {error}") from error


def _settle(ack: asyncio.Future[int], value: int) -> None:
    if not ack.done():
        ack.set_result(value)
