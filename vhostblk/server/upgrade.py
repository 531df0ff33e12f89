"""
Another process goes on in our place, while guests run.

It is started and gets ready while we serve: all descriptors are sent to it, it maps and opens what
it needs, and refuses if it cannot.  Then queues stop with nothing in flight, it is told where they
stand, says that it owns them, and runs them.  Whatever goes wrong before it says so, we go on as if
nothing had happened; its word is the one point of no return, and it touches no ring before it.

The other side is `vhostblk.server.takeover`, what is told is `vhostblk.server.handover`.
"""

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from vhostblk.errors import VhostBlkError
from vhostblk.server import handover as h
from vhostblk.server.courier import Courier, Gone
from vhostblk.server.export import bases, device_state
from vhostblk.server.listener import Listener
from vhostblk.server.notify import notify, reloading
from vhostblk.server.server import Server
from vhostblk.server.service import Service
from vhostblk.version import version

VARIABLE = "VHOSTBLK_HANDOVER_FD"
"""Where a process that was started to take over finds the socket to us."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


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


class Lost(VhostBlkError):  # noqa: N818 - a state
    """The new process had owned the rings when it died: nobody can go on with them."""


def same_command() -> list[str]:
    """Return how this process was started; by the same interpreter, whatever is installed now."""
    return [sys.executable, *sys.orig_argv[1:]]


def command_of(program: Sequence[str]) -> list[str]:
    """Return how another *program* is started with our arguments."""
    return [*program, *sys.argv[1:]]


@dataclass(frozen=True, slots=True)
class Successor:
    """
    A process that has taken over.

    Args:
        pid: Its id.
        paused_seconds: How long guests were paused; None: not known.
    """

    pid: int
    paused_seconds: float | None


@dataclass(slots=True)
class _Successor:
    """The new process, until it owns everything or is dead."""

    process: subprocess.Popen[bytes]
    courier: Courier
    patience: Patience

    async def send(self, document: object, seconds: float) -> None:
        await self._within(asyncio.to_thread(self.courier.send, document, seconds=seconds))

    async def receive(self, kind: type[_T], seconds: float, doing: str) -> _T:
        try:
            return await self._within(
                asyncio.to_thread(self.courier.receive, kind, seconds=seconds)
            )
        except TimeoutError:
            raise VhostBlkError(
                f"the new process takes more than {seconds:g} s to {doing}"
            ) from None

    async def _within(self, work: Coroutine[object, object, _T]) -> _T:
        try:
            return await work
        except Gone:
            status = await asyncio.to_thread(self.process.wait, self.patience.own)
            raise VhostBlkError(f"the new process has ended with status {status}") from None

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
            said = await self.receive(h.Done, self.patience.own, "run the rings")
        except VhostBlkError:
            return None
        return said.paused_seconds

    def end(self) -> bool:
        """Make sure that it is dead; return whether it had owned the rings before."""
        self.process.kill()
        self.process.wait()
        with suppress(VhostBlkError, TimeoutError, OSError):
            return self.courier.receive(h.Answer, seconds=0.1).refused is None
        return False


@dataclass(slots=True)
class _Undo:
    """What has to be undone if the new process does not take over."""

    services: Sequence[Service]
    saved: dict[str, bytes] = field(default_factory=dict)

    async def quiet(self, seconds: float) -> None:
        quiet = (service.quiet(seconds=seconds) for service in self.services)
        for result in await asyncio.gather(*quiet, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def put_down(self) -> None:
        for service in self.services:
            if service.device.shared() is None:
                try:
                    self.saved[service.name] = await service.device.put_down()
                except (OSError, TimeoutError) as error:
                    raise VhostBlkError(f"{service.name}: the disk: {error}") from error

    async def all(self) -> None:
        """Go on as if nothing had happened."""
        for service in self.services:
            if (saved := self.saved.pop(service.name, None)) is not None:
                await service.device.take_up(saved)
            await service.go_on()


class Upgrade:
    """
    Replaces this process, when it is asked to.

    Args:
        server: What is served.
        operators: The control socket, if there is one.
        ended: Called once another process has taken over.
        patience: How long each step may take.
    """

    def __init__(
        self,
        server: Server,
        operators: Listener | None,
        ended: Callable[[], None],
        patience: Patience | None = None,
    ) -> None:
        self._server = server
        self._operators = operators
        self._ended = ended
        self._patience = patience or Patience()
        self._task: asyncio.Task[Successor] | None = None
        self.successor: int | None = None
        """The process that has taken over."""
        self.lost: Lost | None = None
        """Why nobody serves any more."""

    def ask(self) -> None:
        """Begin, and log how it goes: what SIGUSR2 does."""
        if self._task is not None and not self._task.done():
            _log.warning("upgrade: one is under way already")
            return
        self._task = asyncio.ensure_future(self.run(same_command()))
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def cancel(self) -> None:
        """Give up what is under way; returns when we serve on, or another does."""
        if self._task is not None:
            if self.successor is None:
                self._task.cancel()
            await asyncio.wait([self._task])

    async def run(self, command: Sequence[str]) -> Successor:
        """
        Start *command* and have it take over.

        Returns:
            It, which has taken over; we serve nothing any more.

        Raises:
            VhostBlkError: It did not, and we go on; one line that says why.
            Lost: It did, and has died.
        """
        if self._task is not None and not self._task.done() and self._task is not _current():
            raise VhostBlkError("an upgrade is under way already")
        self._task = _current()
        _log.info("upgrade: starting %s", " ".join(command))
        notify(*reloading(), "STATUS=upgrading")
        try:
            successor = await self._run(command)
        except BaseException as error:
            self._failed(error)
            raise
        _log.info("upgrade: process %d has taken over", successor.pid)
        self._ended()
        return successor

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Lost):
            self.lost = error
            self._ended()
            return
        why = "told to stop" if isinstance(error, asyncio.CancelledError) else str(error)
        _log.error("upgrade: not done, serving on: %s", why)
        if not isinstance(error, VhostBlkError | asyncio.CancelledError):
            _log.error("upgrade: a bug of ours", exc_info=error)
        notify("READY=1", f"STATUS=serving {', '.join(self._server.services)}")

    async def _run(self, command: Sequence[str]) -> Successor:
        services = list(self._server.services.values())
        for service in services:
            _check(service)
        successor = _start(command, self._patience)
        try:
            await self._greet(successor)
            async with AsyncExitStack() as held:
                await self._hold(services, held)
                await self._prepare(successor, services)
                await self._commit(successor, services)
                self.successor = successor.process.pid
                self._leave(services)
            paused = await successor.done()
        except BaseException:
            await asyncio.to_thread(successor.end)
            raise
        finally:
            successor.courier.hang_up()
        self._server.services.clear()
        for service in services:
            await service.left()
        successor.process.returncode = 0  # nobody waits for it here: it is not our child for long
        return Successor(successor.process.pid, paused)

    async def _greet(self, successor: _Successor) -> None:
        hello = await successor.receive(h.Hello, self._patience.start, "start")
        if h.VERSION not in hello.versions:
            raise VhostBlkError(
                f"vhostblk {hello.program} reads state documents of version "
                f"{', '.join(map(str, hello.versions))}, and ours is {h.VERSION}: stop and start"
            )

    async def _hold(self, services: Sequence[Service], held: AsyncExitStack) -> None:
        try:
            async with asyncio.timeout(self._patience.hold):
                for service in services:
                    await held.enter_async_context(service.held())
                if self._operators is not None:
                    held.callback(self._operators.brake.let_go)
                    await self._operators.brake.hold()
        except TimeoutError:
            raise VhostBlkError(
                f"a front-end's message takes longer than {self._patience.hold:g} s now"
            ) from None

    async def _prepare(self, successor: _Successor, services: Sequence[Service]) -> None:
        control = None if self._operators is None else self._operators.share()
        devices = tuple(device_state(service) for service in services)
        state = h.ServerState(program=version(), devices=devices, control=control)
        await successor.send(state, self._patience.prepare)
        await successor.answer(self._patience.prepare, "get ready")

    async def _commit(self, successor: _Successor, services: Sequence[Service]) -> None:
        undo = _Undo(services)
        since = time.monotonic()
        try:
            await undo.quiet(self._patience.quiet)
            await undo.put_down()
            rest = [_rest(service, undo.saved.get(service.name)) for service in services]
            try:
                await successor.send(h.Last(since=since, devices=tuple(rest)), self._patience.own)
            finally:
                for one in rest:
                    if one.saved is not None:
                        os.close(one.saved)
            await successor.answer(self._patience.own, "take over")
        except BaseException as error:
            if await asyncio.to_thread(successor.end):
                for service in services:
                    service.device.tenure.hand_over()  # nothing here may touch a ring again
                raise Lost(
                    "the new process has died with the rings: front-ends have to connect again"
                ) from error
            await undo.all()
            raise

    def _leave(self, services: Sequence[Service]) -> None:
        for service in services:
            service.leave()
        if self._operators is not None:
            self._operators.leave()


def _current() -> "asyncio.Task[Successor]":
    task = asyncio.current_task()
    if task is None:
        raise AssertionError("there is a task in every coroutine")
    return task


def _check(service: Service) -> None:
    session = service.session
    if session is not None and any(ring.stall() for ring in session.attachment.rings):
        raise VhostBlkError(
            f"{service.name}: requests are held that the disk has failed: help it, then "
            f"vhostblk ctl resume {service.name}"
        )
    try:
        service.device.shared()
    except VhostBlkError as error:
        raise VhostBlkError(f"{service.name}: {error}") from error


def _rest(service: Service, saved: bytes | None) -> h.Rest:
    return h.Rest(
        name=service.name,
        bases=bases(service),
        saved=None if saved is None else _in_memory(saved),
    )


def _in_memory(data: bytes) -> int:
    fd = os.memfd_create("vhostblk saved", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def _start(command: Sequence[str], patience: Patience) -> _Successor:
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
    return _Successor(process, courier, patience)
