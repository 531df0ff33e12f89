"""
Our own requests to the front-end, on the socket of SET_BACKEND_REQ_FD.

Nothing here makes a message of the front-end's wait: it may not answer before we have.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Sequence
from errno import EINVAL, EPIPE

from vhostblk.errors import ProtocolError, Refused
from vhostblk.protocol.channel import Channel, ConfigChange, IotlbMiss
from vhostblk.server.gate import Brake
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
        self._brake = Brake(self._more.set)
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

    def tell(self, message: ConfigChange) -> bool:
        """Send a request that asks for no ack; whether there is somebody to send it to."""
        data = self._channel.encode(message)
        if not self._closed and data not in self._unsent:  # twice the same says nothing new
            self._unsent.append(data)
            self._more.set()
        return not self._closed

    # ---- for another process that goes on with it ---------------------------------------------

    def fileno(self) -> int:
        """Return the socket's descriptor, which stays here."""
        return self._writer.fileno()

    async def hold(self) -> None:
        """Return when nothing is half sent or half read; what is asked meanwhile waits here."""
        if not self._closed:
            await asyncio.gather(self._brake.hold(), self._reader.brake.hold())

    def let_go(self) -> None:
        """Go on, after `hold`."""
        self._brake.let_go()
        self._reader.brake.let_go()

    @property
    def state(self) -> tuple[tuple[int, ...], bytes]:
        """Return what `go_on` needs: whose acks are to come, and what has come of the next."""
        waiting, data = self._channel.state
        return waiting[: len(waiting) - len(self._unsent)], data

    def go_on(self, waiting: Sequence[int], data: bytes) -> None:
        """
        Go on where another process has left it: its acks are due, and nobody here needs them.

        Nothing is read before `let_go`, as the other process may yet need it.

        Raises:
            ProtocolError: It cannot have been left so.
            ValueError: The same.
        """
        self._reader.brake.shut()
        self._channel.go_on(waiting, data)
        loop = asyncio.get_running_loop()
        self._acks.extend(loop.create_future() for _ in waiting)

    async def _write(self) -> None:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                await self._brake.passed()
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
