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
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

from vhostblk.errors import VhostBlkError
from vhostblk.server import handover as h
from vhostblk.server.export import bases, device_state
from vhostblk.server.heir import Heir, Patience, start
from vhostblk.server.listener import Listener
from vhostblk.server.notify import notify, reloading
from vhostblk.server.server import Server
from vhostblk.server.service import Service
from vhostblk.server.totals import device_totals, with_layers
from vhostblk.version import version

_log = logging.getLogger(__name__)


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
            device = service.device
            try:
                if device.shared() is None:
                    self.saved[service.name] = await device.put_down()
                elif device.backing.may_hold_back:
                    await device.flush()
            except (OSError, TimeoutError) as error:
                raise VhostBlkError(f"{service.name}: the disk: {error}") from error

    async def all(self) -> None:
        """Go on as if nothing had happened; a device that cannot keeps no other from it."""
        for service in self.services:
            try:
                if (saved := self.saved.pop(service.name, None)) is not None:
                    await service.device.take_up(saved)
                await service.go_on()
            except Exception:
                service.device.log.exception(
                    "the disk cannot be opened again, so it is served no longer: "
                    "stop and start the server"
                )
                service.give_up()


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
        self._over = asyncio.Event()
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
        if self._task is None:
            return
        if self.successor is None:
            self._task.cancel()
        # Not for the task alone: it is a client's, who may go on with other requests.
        over = asyncio.ensure_future(self._over.wait())
        await asyncio.wait({self._task, over}, return_when=asyncio.FIRST_COMPLETED)
        over.cancel()

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
        self._task, self._over = _current(), asyncio.Event()
        self._server.full = "another process takes over now: try again when it has"
        _log.info("upgrade: starting %s", " ".join(command))
        notify(*reloading(), "STATUS=upgrading")
        try:
            successor = await self._run(command)
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self._task = None
            self._over.set()
        _log.info("upgrade: process %d has taken over", successor.pid)
        self._ended()
        return successor

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Lost):
            self.lost = error
            self._ended()
            return
        self._server.full = None
        why = "told to stop" if isinstance(error, asyncio.CancelledError) else str(error)
        _log.error("upgrade: not done, serving on: %s", why)
        if not isinstance(error, VhostBlkError | asyncio.CancelledError):
            _log.error("upgrade: a bug of ours", exc_info=error)
        notify("READY=1", f"STATUS=serving {', '.join(self._server.services)}")

    async def _run(self, command: Sequence[str]) -> Successor:
        services = list(self._server.services.values())
        for service in services:
            _check(service)
        successor = start(command, self._patience)
        try:
            await self._greet(successor)
            async with AsyncExitStack() as held:
                await self._hold(services, held)
                await self._prepare(successor, services)
                await self._commit(successor, services)
                self.successor = successor.process.pid
                self._leave(services)
                totals = _totals(services)
        except BaseException:
            await successor.end()
            successor.courier.hang_up()
            raise
        paused = await successor.done()
        totals = await _with_layers(services, totals)
        with suppress(VhostBlkError):
            await successor.send(totals, self._patience.own)
        successor.courier.hang_up()
        self._server.services.clear()
        for service in services:
            await service.left()
        successor.process.returncode = 0  # nobody waits for it here: it is not our child for long
        return Successor(successor.process.pid, paused)

    async def _greet(self, successor: Heir) -> None:
        hello = await successor.receive(h.Hello, self._patience.start, "start")
        if h.VERSION not in hello.versions:
            raise VhostBlkError(
                f"vhostblk {hello.program} reads state documents of version "
                f"{', '.join(map(str, hello.versions))}, and ours is {h.VERSION}: stop and start"
            )
        if hello.pid != successor.process.pid:
            # Before we go on in its place we kill it: that must be it, or two would run the rings.
            raise VhostBlkError(
                f"what was started has started vhostblk as process {hello.pid}, which is out of "
                "our hands: name that program itself, or have a script exec it"
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
                "a front-end's message, or a change of a device, takes longer than "
                f"{self._patience.hold:g} s now: try again later"
            ) from None
        if list(self._server.services.values()) != services:
            raise VhostBlkError("a device has been removed meanwhile: ask for it again")

    async def _prepare(self, successor: Heir, services: Sequence[Service]) -> None:
        control = None if self._operators is None else self._operators.share()
        devices = tuple(device_state(service) for service in services)
        state = h.ServerState(program=version(), devices=devices, control=control)
        await successor.send(state, self._patience.prepare)
        await successor.answer(self._patience.prepare, "get ready")

    async def _commit(self, successor: Heir, services: Sequence[Service]) -> None:
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
            if await successor.end():
                for service in services:
                    service.device.tenure.hand_over()  # nothing here may touch a ring again
                    service.device.hang_up()  # nor say where one stands, which nobody knows
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


def _totals(services: Sequence[Service]) -> h.Totals:
    try:
        return h.Totals(devices=tuple(map(device_totals, services)))
    except Exception:  # noqa: BLE001 - another process has the rings: nothing here may fail that
        _log.exception("upgrade: a bug of ours, and what was counted is lost")
        return h.Totals(devices=())


async def _with_layers(services: Sequence[Service], totals: h.Totals) -> h.Totals:
    """Add what layers have counted, where they can say it; another process has the rings by now."""
    by_name = {service.name: service for service in services}
    asked = (with_layers(by_name[one.name], one) for one in totals.devices)
    devices = []
    said = await asyncio.gather(*asked, return_exceptions=True)
    for one, more in zip(totals.devices, said, strict=True):
        if isinstance(more, BaseException):
            _log.error("upgrade: %s: what its layers have counted is lost", one.name, exc_info=more)
        devices.append(one if isinstance(more, BaseException) else more)
    return h.Totals(devices=tuple(devices))


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
