"""
One front-end's connection: message after message, strictly one at a time.

A handler that waits for a drain makes the messages behind it wait, as replies are ordered; other
devices go on.  Whatever ends the connection, nothing of it is left afterwards.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from errno import EOPNOTSUPP
from typing import TypeAlias, TypeVar

from vhostblk.errors import ProtocolError, Refused
from vhostblk.protocol import messages as m
from vhostblk.protocol.connection import Connection
from vhostblk.protocol.describe import describe
from vhostblk.protocol.messages import Received, close_fds
from vhostblk.protocol.replies import Outcome
from vhostblk.server import handlers_config as config
from vhostblk.server import handlers_features as features
from vhostblk.server import handlers_inflight as inflight
from vhostblk.server import handlers_iotlb as iotlb
from vhostblk.server import handlers_log as dirty
from vhostblk.server import handlers_memory as memory
from vhostblk.server import handlers_vrings as vrings
from vhostblk.server.attachment import Attachment
from vhostblk.server.gate import Brake
from vhostblk.server.log import MESSAGES, Log
from vhostblk.server.transport import Transport

_M = TypeVar("_M")
Handler: TypeAlias = Callable[[Attachment, Received], Awaitable[Outcome]]


def _on(
    kind: type[_M], handle: Callable[[Attachment, _M], Awaitable[Outcome]]
) -> tuple[type[object], Handler]:
    """Make a row of the table: its handler takes exactly its message."""

    def checked(attachment: Attachment, message: Received) -> Awaitable[Outcome]:
        if not isinstance(message, kind):
            raise TypeError(f"{kind.__name__} is due, not {message!r}")
        return handle(attachment, message)

    return kind, checked


HANDLERS: dict[type[object], Handler] = dict(
    (
        _on(m.GetFeatures, features.get_features),
        _on(m.SetFeatures, features.set_features),
        _on(m.GetProtocolFeatures, features.get_protocol_features),
        _on(m.SetProtocolFeatures, features.set_protocol_features),
        _on(m.GetQueueNum, features.get_queue_num),
        _on(m.GetMaxMemSlots, features.get_max_mem_slots),
        _on(m.SetOwner, features.set_owner),
        _on(m.SetBackendReqFd, features.set_backend_req_fd),
        _on(m.SetMemTable, memory.set_mem_table),
        _on(m.AddMemReg, memory.add_mem_reg),
        _on(m.RemMemReg, memory.rem_mem_reg),
        _on(m.SetVringNum, vrings.set_vring_num),
        _on(m.SetVringBase, vrings.set_vring_base),
        _on(m.GetVringBase, vrings.get_vring_base),
        _on(m.SetVringAddr, vrings.set_vring_addr),
        _on(m.SetVringKick, vrings.set_vring_kick),
        _on(m.SetVringCall, vrings.set_vring_call),
        _on(m.SetVringErr, vrings.set_vring_err),
        _on(m.SetVringEnable, vrings.set_vring_enable),
        _on(m.SetLogBase, dirty.set_log_base),
        _on(m.SetLogFd, dirty.set_log_fd),
        _on(m.GetInflightFd, inflight.get_inflight_fd),
        _on(m.SetInflightFd, inflight.set_inflight_fd),
        _on(m.IotlbMsg, iotlb.iotlb_msg),
        _on(m.GetConfig, config.get_config),
        _on(m.SetConfig, config.set_config),
        _on(m.GetStatus, config.get_status),
        _on(m.SetStatus, config.set_status),
        _on(m.ResetDevice, config.reset_device),
        _on(m.ResetOwner, config.reset_owner),
    )
)
"""Message to action; what is not here is refused by its name."""


class Session:
    """
    A connection and what the front-end has of the device.

    Args:
        transport: Connected; owned.
        attachment: Fresh; owned.
        log: For what an operator should know.

    Attributes:
        gone: Set once the front-end has left, be it while a message of its is being handled.
    """

    def __init__(self, transport: Transport, attachment: Attachment, log: Log) -> None:
        self._transport = transport
        self.attachment = attachment
        self.connection = Connection(queues=attachment.device.blk.num_queues)
        self._log = log
        self.gone = asyncio.Event()
        self._left = False
        self._messages = Log(MESSAGES, attachment.device.options.name)

    async def run(self, *, anew: bool = True) -> None:
        """Serve until the front-end leaves or errs, or `stop`; then leave nothing behind."""
        await self.serve(anew=anew)
        await self.close()

    async def serve(self, *, anew: bool = True) -> None:
        """
        Serve until the front-end leaves or errs, or `stop`; `close` what is left then.

        Args:
            anew: It has just connected; False: to another process, long ago.
        """
        if anew:
            self._log.info("a front-end has connected")
        try:
            await self._serve()
        except ProtocolError as error:
            self._log.warning("the front-end erred, closing its connection: %s", error)
        except Exception:  # noqa: BLE001 - one session ends, the device listens on
            self._log.exception("a bug of ours, closing the connection")
        finally:
            self.drop()

    def drop(self) -> None:
        """Hang up; `close` what is left then.  Again does nothing."""
        if self.gone.is_set():
            return
        # First of all: whoever is on the other end shall not wait for our drains.
        self._transport.close()
        self.connection.close()
        self.gone.set()
        self.attachment.leave()

    def fileno(self) -> int:
        """Return the socket's descriptor, which stays here."""
        return self._transport.fileno()

    @property
    def brake(self) -> Brake:
        """Where no message is in hand, though one may have come in part."""
        return self._transport.brake

    def leave(self) -> None:
        """End as `stop` does: another process goes on with the front-end."""
        self._left = True
        self.stop()

    def stop(self) -> None:
        """End after the message in hand."""
        self._transport.stop()

    async def _serve(self) -> None:
        while (message := await self._next()) is not None:
            if self._messages.isEnabledFor(logging.DEBUG):
                self._messages.debug("%s", describe(message))
            try:
                with self._transport.watched(self.drop):
                    outcome = await self._handle(message)
            finally:
                close_fds(message)
            if self.gone.is_set():
                return
            data, fds = self.connection.reply(message, outcome)
            try:
                await self._transport.send(data, fds)
            except ConnectionError:
                return

    async def _next(self) -> Received | None:
        """Return the next message, None at the end; one that came in part is dropped."""
        while True:
            data, fds = await self._transport.receive(self.connection.want)
            if not data:
                if not self.connection.idle and not self._left:
                    self._log.warning("the front-end left in the middle of a message")
                return None
            message = self.connection.receive(data, fds)
            if message is not None:
                return message

    async def _handle(self, message: Received) -> Outcome:
        try:
            return await self._answer(message)
        except Refused as refused:
            self._log.warning("refused: %s", refused)
            return refused

    async def _answer(self, message: Received) -> Outcome:
        if isinstance(message, m.Invalid):
            raise Refused(message.errno, message.reason)
        handler = HANDLERS.get(type(message))
        if handler is None:
            raise Refused(EOPNOTSUPP, f"{message.request.name} is not supported")
        async with self.attachment.lock:
            return await handler(self.attachment, message)

    async def close(self) -> None:
        """Behind `serve`: wait for what is in flight, for a bounded time, and leave nothing."""
        await self.attachment.close()
        if not self._left:
            self._log.info("the front-end is gone")
