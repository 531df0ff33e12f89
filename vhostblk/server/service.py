"""
A device being served: where its front-ends come from, one after the other, and its end.

What is changed at run time is changed under the service's lock, one thing after the other.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from vhostblk.errors import VhostBlkError
from vhostblk.protocol.state import RingState
from vhostblk.server.attachment import Attachment
from vhostblk.server.device import Device
from vhostblk.server.peer import peer_of
from vhostblk.server.session import Session
from vhostblk.server.source import Source
from vhostblk.server.transport import Transport

RETRY_SECONDS = 1.0
"""How long to wait with a connection that no descriptor is left for."""
MOST_LEAVING = 8
"""Front-ends that are gone and still waited for, at most, before the next one is taken: each has
its descriptors and mappings, and one that hurries would use them all up."""


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
        added: The table by which an operator has added it; None: it is in the command line, or in
            a file.
    """

    device: Device
    listener: Source
    session: Session | None = None
    task: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    leaving: set[asyncio.Task[None]] = field(default_factory=set)
    added: Mapping[str, object] | None = None

    @property
    def name(self) -> str:
        """What the device is called."""
        return self.device.options.name

    def start(self) -> None:
        """Take front-ends from now on."""
        self.task = asyncio.create_task(self._serve(), name=f"serve {self.name}")

    async def _serve(self, *, anew: bool = True) -> None:
        """Serve one front-end after the other."""
        device = self.device
        if not anew and self.session is not None:
            await self._run(self.session, anew=False)
        while True:
            while len(self.leaving) >= MOST_LEAVING:
                await asyncio.wait(self.leaving, return_when=asyncio.FIRST_COMPLETED)
            try:
                sock = await self.listener.accept()
            except OSError as error:
                device.log.warning("a connection cannot be accepted: %s", error.strerror)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if sock is None:
                return
            async with device.changing:
                peer = peer_of(sock, now=time.time())
                attachment = Attachment(device, peer, after=self._after())
            await self._run(Session(Transport(sock), attachment, device.log), anew=True)

    async def _run(self, session: Session, *, anew: bool) -> None:
        """
        Serve a front-end until it is gone.

        What it has in flight, and the message it did not wait for, are waited for beside: a QEMU
        that connects again finds itself answered at once; its rings run when this is over.
        """
        self.session = session
        self.device.hang_up = session.stop
        running = asyncio.create_task(session.run(anew=anew), name=f"session of {self.name}")
        await session.gone.wait()
        self.session = None
        self.leaving.add(running)
        running.add_done_callback(self._left)

    def _left(self, leaving: asyncio.Task[None]) -> None:
        self.leaving.discard(leaving)
        if not leaving.cancelled() and (bug := leaving.exception()) is not None:
            self.device.log.error("a bug of ours, at the end of a connection", exc_info=bug)

    def _after(self) -> asyncio.Future[None] | None:
        """Return what is done once nothing is left of the front-ends before; None: it is so."""
        if not self.leaving:
            return None
        return asyncio.ensure_future(_all(tuple(self.leaving)))

    # ---- for another process that goes on with it -------------------------------------------

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Take no connection, no message and no answer, nor change anything, for a while."""
        async with self.lock, AsyncExitStack() as stack:
            stack.callback(self.listener.brake.let_go)
            session = self.session
            if session is not None:
                stack.callback(session.brake.let_go)
            await self._stands(session)
            await _all(tuple(self.leaving))
            if self.session is not None:
                attachment = self.session.attachment
                await stack.enter_async_context(attachment.lock)
                if (requests := attachment.iommu.requests) is not None:
                    stack.callback(requests.let_go)
                    await requests.hold()
            yield

    async def _stands(self, session: Session | None) -> None:
        """Return when the loop stands still, at the end of a message or before a connection."""
        waits: set[asyncio.Future[None]] = {asyncio.ensure_future(self.listener.brake.hold())}
        if session is not None:
            waits.add(asyncio.ensure_future(session.brake.hold()))
        if self.task is not None:
            waits.add(self.task)  # it has ended: no front-end can come any more
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits - {self.task}:
                one.cancel()

    async def quiet(self, *, seconds: float) -> None:
        """
        Have nothing in flight, until `go_on`.

        Raises:
            VhostBlkError: Something takes longer; nothing has changed.
        """
        rings = [] if self.session is None else self.session.attachment.running
        ended = await asyncio.gather(
            *(
                ring.keeper.quiet(enabled=ring.state is RingState.STARTED, seconds=seconds)
                for ring in rings
            )
        )
        if not all(ended):
            await self.go_on()
            raise VhostBlkError(
                f"{self.name}: requests take longer than {seconds:g} s now: try again later"
            )

    async def go_on(self) -> None:
        """End a `quiet`."""
        for ring in [] if self.session is None else self.session.attachment.running:
            await ring.keeper.go_on(enabled=ring.state is RingState.STARTED)

    def take_over(self, session: Session | None) -> None:
        """Go on with the front-end of another process, if it had one."""
        self.session = session
        self.task = asyncio.create_task(self._serve(anew=False), name=f"serve {self.name}")

    def leave(self) -> None:
        """End, as another process goes on."""
        self.device.tenure.hand_over()
        self.listener.leave()
        if self.session is not None:
            self.session.leave()
            self.session.attachment.leave()  # at once: whoever waits for its lock must not get it

    def give_up(self) -> None:
        """Take no front-end any more and hang up on the one there is: its disk is not open."""
        self.device.tenure.hand_over()
        self.listener.close()
        self.device.hang_up()

    async def left(self) -> None:
        """Return when nothing is left here, after `leave`."""
        if self.task is not None:
            await self.task
        await _all(tuple(self.leaving))
        await self.device.leave()

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
