"""
A device being served: where its front-ends come from, one after the other, and its end.

What is changed at run time is changed under the service's lock, one thing after the other.
"""

import asyncio
import time
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
    """

    device: Device
    listener: Source
    session: Session | None = None
    task: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

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
            attachment = Attachment(device, peer_of(sock, now=time.time()))
            self.session = Session(Transport(sock), attachment, device.log)
            try:
                await self.session.run()
            except Exception:
                device.log.exception("a bug of ours, at the end of a connection")
            self.session = None

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
            await self.device.close()
