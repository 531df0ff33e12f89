"""
The control socket: requests and answers of `jsonrpc`, one a line, over a Unix socket.

Whoever may connect may do all that the operator may, so the socket is the operator's own (mode
0600).  A client that is slow, stuck or mad keeps nobody else from the socket: each connection has
its own task, and the one that has been silent longest makes room.
"""

import asyncio
import logging
import socket
import time
from dataclasses import dataclass

from vhostblk.server.jsonrpc import Code, Dispatcher, failure
from vhostblk.server.listener import Listener
from vhostblk.server.peer import peer_of

MAX_LINE = 1 << 16
"""Bytes of a request or batch, with its newline."""
MAX_CONNECTIONS = 16
SEND_SECONDS = 10.0
"""How long a client may take to take an answer."""
CLOSE_SECONDS = 60.0
"""How long what was asked may take when we end: more than a drain of the old disk and a flush."""
RETRY_SECONDS = 1.0
"""How long to wait with a connection that no descriptor is left for."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Client:
    """
    A connection.

    Args:
        reader: Of lines.
        writer: Of answers.
        asker: Who it is, for the log.
        silent_since: When it began to wait for a line; None: one is being answered.
        task: Serves it.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    asker: str
    silent_since: float | None = None
    task: asyncio.Task[None] | None = None


class Control:
    """
    A control socket.

    Args:
        listener: Where clients come from; owned.
        dispatcher: What answers them.
    """

    def __init__(self, listener: Listener, dispatcher: Dispatcher) -> None:
        self._listener = listener
        self._dispatcher = dispatcher
        self._clients: set[_Client] = set()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take clients from now on."""
        self._task = asyncio.create_task(self._accept(), name="control")

    async def close(self) -> None:
        """Take no more requests; what was asked is done and answered first."""
        self._closing = True
        self._listener.close()
        if self._task is not None:
            await self._task
        for client in tuple(self._clients):
            if client.silent_since is not None:
                _hang_up(client)
        tasks = [client.task for client in self._clients if client.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            for task in late:
                _log.error("control: a request that takes too long is given up")
                task.cancel()

    async def _accept(self) -> None:
        while True:
            try:
                sock = await self._listener.accept()
            except OSError as error:
                _log.warning("control: a connection cannot be accepted: %s", error.strerror)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if sock is None:
                return
            await self._take(sock)

    async def _take(self, sock: socket.socket) -> None:
        peer = peer_of(sock, now=time.time())
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE - 1)
        writer.transport.set_write_buffer_limits(high=0)  # drained is sent
        client = _Client(reader, writer, f"process {peer.pid} of user {peer.uid}")
        if len(self._clients) >= MAX_CONNECTIONS and not self._make_room():
            writer.write(failure(Code.BUSY, f"{MAX_CONNECTIONS} clients are being answered"))
            writer.close()
            return
        self._clients.add(client)
        client.silent_since = time.monotonic()
        client.task = asyncio.create_task(self._serve(client), name="control client")

    def _make_room(self) -> bool:
        """Hang up on the client that has been silent longest; tell whether there is one."""
        silent = [one for one in self._clients if one.silent_since is not None]
        oldest = min(silent, key=lambda one: one.silent_since or 0.0, default=None)
        if oldest is None:
            return False
        self._clients.discard(oldest)
        _hang_up(oldest)
        return True

    async def _serve(self, client: _Client) -> None:
        try:
            while (line := await self._line(client)) is not None:
                answer = await self._dispatcher.answer(line, client.asker)
                if answer is not None:
                    await _send(client, answer)
                if self._closing:
                    break
        except OSError:
            pass  # it is gone, or does not listen
        except Exception:  # noqa: BLE001 - one client ends, the others go on
            _log.exception("a bug of ours, serving the control socket")
        finally:
            self._clients.discard(client)
            _hang_up(client)

    async def _line(self, client: _Client) -> bytes | None:
        """Return the next line that says something; None: there is none."""
        while True:
            client.silent_since = time.monotonic()
            try:
                line = await client.reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return None
            except asyncio.LimitOverrunError:
                await _send(client, failure(Code.INVALID, f"a line has {MAX_LINE} bytes at most"))
                return None
            finally:
                client.silent_since = None
            if line.strip():
                return line


async def _send(client: _Client, answer: bytes) -> None:
    client.writer.write(answer)
    async with asyncio.timeout(SEND_SECONDS):
        await client.writer.drain()


def _hang_up(client: _Client) -> None:
    """Close a connection; what could not be sent in time is lost with it."""
    client.writer.transport.abort()
