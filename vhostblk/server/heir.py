"""
The process that is to go on in our place, until it owns everything or is dead.

What it says is waited for in threads, which end with it: what one of them has heard is never lost,
also where whoever waited for it was told to stop.
"""

import asyncio
import os
import subprocess
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from vhostblk.errors import VhostBlkError
from vhostblk.server import handover as h
from vhostblk.server.courier import Courier, Gone

VARIABLE = "VHOSTBLK_HANDOVER_FD"
"""Where a process that was started to take over finds the socket to us."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """
    How long each step may take, in seconds.

    Args:
        start: Until the new process says anything: an interpreter and its imports, on a busy host.
        hold: Until the messages in hand are answered.
        prepare: Until it is ready; front-ends get no answers meanwhile, but their guests run.
        quiet: Until requests in flight have ended: a guest waits for no longer than that.
        own: Until it says that it owns the rings.
    """

    start: float = 30.0
    hold: float = 5.0
    prepare: float = 30.0
    quiet: float = 3.0
    own: float = 10.0


class Heir:
    """
    The new process.

    Args:
        process: It, which has been started.
        courier: To it.
        patience: How long each step may take.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], courier: Courier, patience: Patience
    ) -> None:
        self.process = process
        self.courier = courier
        self._patience = patience
        self._under_way: asyncio.Task[object] | None = None

    async def send(self, document: object, seconds: float) -> None:
        """
        Tell it something.

        Raises:
            VhostBlkError: It does not listen, or is dead.
        """
        work = asyncio.to_thread(self.courier.send, document, seconds=seconds)
        await self._within(work, seconds, "listen")

    async def receive(self, kind: type[_T], seconds: float, doing: str) -> _T:
        """
        Return what it says next.

        Args:
            kind: What that has to be.
            seconds: How long it may take.
            doing: What it does meanwhile.

        Raises:
            VhostBlkError: It is silent, or dead.
        """
        work = asyncio.to_thread(self.courier.receive, kind, seconds=seconds)
        return await self._within(work, seconds, doing)

    async def _within(self, work: Coroutine[object, object, _T], seconds: float, doing: str) -> _T:
        under_way = self._under_way = asyncio.ensure_future(work)
        try:
            done = await asyncio.shield(under_way)
        except TimeoutError:
            raise VhostBlkError(
                f"the new process takes more than {seconds:g} s to {doing}"
            ) from None
        except Gone:
            raise VhostBlkError(f"the new process has {await self._ending()}") from None
        self._under_way = None
        return done

    async def _ending(self) -> str:
        try:
            status = await asyncio.to_thread(self.process.wait, self._patience.own)
        except subprocess.TimeoutExpired:
            return "hung up"
        return f"ended with status {status}"

    async def answer(self, seconds: float, doing: str) -> None:
        """
        Return when it says yes.

        Raises:
            VhostBlkError: It refuses, is silent, or dead.
        """
        said = await self.receive(h.Answer, seconds, doing)
        if said.refused is not None:
            raise VhostBlkError(f"the new process cannot take over: {said.refused}")

    async def done(self) -> float | None:
        """Return how long guests were paused; None: it does not say."""
        try:
            said = await self.receive(h.Done, self._patience.own, "run the rings")
        except VhostBlkError:
            return None
        return said.paused_seconds

    async def end(self) -> bool:
        """Make sure that it is dead; return whether it had owned the rings before."""
        await asyncio.to_thread(self._kill)
        if self._under_way is not None:
            # Called off, not over: it may have heard what is asked for here.
            (said,) = await asyncio.gather(self._under_way, return_exceptions=True)
            if isinstance(said, h.Answer):
                return said.refused is None
        with suppress(VhostBlkError, TimeoutError, OSError):
            last = await asyncio.to_thread(self.courier.receive, h.Answer, seconds=0.1)
            return last.refused is None
        return False

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()


def start(command: Sequence[str], patience: Patience) -> Heir:
    """
    Start *command* and have it take over.

    Raises:
        VhostBlkError: It cannot be started.
    """
    courier, theirs = Courier.pair()
    with theirs:
        fd = theirs.fileno()
        try:
            process = subprocess.Popen(  # noqa: S603 - ourselves, or what an operator said
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=[fd],
                env={**os.environ, VARIABLE: str(fd)},
            )
        except OSError as error:
            courier.hang_up()
            raise VhostBlkError(f"cannot start {command[0]}: {error.strerror}") from error
    return Heir(process, courier, patience)
