"""
A device being served: where its front-ends come from, one after the other, and its end.

What is changed at run time is changed under the service's lock, one thing after the other.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from vhostblk.server.attachment import Attachment
from vhostblk.server.device import Device
from vhostblk.server.peer import peer_of
from vhostblk.server.session import Session
from vhostblk.server.source import Source
from vhostblk.server.transport import Transport

RETRY_SECONDS = 1.0
"""How long to wait with a connection that no descriptor is left for."""


@dataclass(slots=True)
class Service:
    """
    A device being served.

    Args:
        device: What.
        listener: Where its front-ends come from.
        session: The one that is connected.
        task: The accept loop.
        lock: Held while the device is changed, and by its end.
        leaving: What waits for requests of front-ends that are gone.
    """

    device: Device
    listener: Source
    session: Session | None = None
    task: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    leaving: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def name(self) -> str:
        """What the device is called."""
        return self.device.options.name

    def start(self) -> None:
        """Take front-ends from now on."""
        self.task = asyncio.create_task(self._serve(), name=f"serve {self.name}")

    async def _serve(self) -> None:
        """Serve one front-end after the other."""
        device = self.device
        while True:
            try:
                sock = await self.listener.accept()
            except OSError as error:
                device.log.warning("a connection cannot be accepted: %s", error.strerror)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if sock is None:
                return
            attachment = Attachment(device, peer_of(sock, now=time.time()), after=self._after())
            session = self.session = Session(Transport(sock), attachment, device.log)
            try:
                await session.serve()
            except Exception:
                device.log.exception("a bug of ours, at the end of a connection")
            finally:
                self.session = None
                self._leave(session)

    def _leave(self, session: Session) -> None:
        """
        Wait beside for what a front-end that is gone has in flight.

        A QEMU that connects again finds itself answered at once; its rings run when this is over.
        """
        leaving = asyncio.create_task(session.close(), name=f"leave {self.name}")
        self.leaving.add(leaving)
        leaving.add_done_callback(self._left)

    def _left(self, leaving: asyncio.Task[None]) -> None:
        self.leaving.discard(leaving)
        if not leaving.cancelled() and (bug := leaving.exception()) is not None:
            self.device.log.error("a bug of ours, at the end of a connection", exc_info=bug)

    def _after(self) -> asyncio.Future[None] | None:
        """Return what is done once nothing is left of the front-ends before; None: it is so."""
        if not self.leaving:
            return None
        return asyncio.ensure_future(_all(tuple(self.leaving)))

    async def end(self) -> None:
        """
        Hang up, drain, flush and close the disk; a change under way is done first.

        Raises:
            VhostBlkError: Completed writes may not be stable.
        """
        self.listener.close()
        async with self.lock:
            if self.session is not None:
                self.session.stop()
            if self.task is not None:
                with suppress(asyncio.CancelledError):
                    await self.task
            await _all(tuple(self.leaving))
            await self.device.close()


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Return when all *tasks* are over, whatever became of them."""
    if tasks:
        await asyncio.wait(tasks)
