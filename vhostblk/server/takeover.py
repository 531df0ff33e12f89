"""
Going on in the place of another process: the other side of `vhostblk.server.upgrade`.

Until we say that we own the rings nothing is read from a front-end, no ring is touched, and
whatever fails ends this process only.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vhostblk.disk import carry
from vhostblk.disk.grammar import DiskSpec, parse
from vhostblk.disk.make import make
from vhostblk.errors import VhostBlkError
from vhostblk.server import handover as h
from vhostblk.server.backing import Before
from vhostblk.server.connector import connect
from vhostblk.server.courier import Courier, Gone
from vhostblk.server.device import Device, open_device
from vhostblk.server.heir import VARIABLE
from vhostblk.server.listener import Listener
from vhostblk.server.log import Log
from vhostblk.server.notify import notify
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.restore import check_device, promised, restore, resume
from vhostblk.server.server import Server
from vhostblk.server.service import Service
from vhostblk.server.session import Session
from vhostblk.server.settings import read_settings
from vhostblk.server.source import Source, Spent
from vhostblk.server.totals import recall, recall_layers
from vhostblk.version import version

SECONDS = 60.0
"""How long the other process may take for a step; it gives up long before."""
TOTALS_SECONDS = 5.0
"""How long is waited, with guests that run, for what the other process has counted."""
_log = logging.getLogger(__name__)


def expected(environ: MutableMapping[str, str]) -> bool:
    """Tell whether this process was started to take over."""
    return VARIABLE in environ


@dataclass(slots=True)
class _Plan:
    """
    A device of ours, and what it was in the other process.

    Args:
        disk: Not open yet.
        options: What is asked of it.
        source: The disk as it was written.
        state: What it was.
        front_ends: Where they come from, once that is made.
        device: Once it is open.
        session: Once it is made, if a front-end is connected.
        rest: Once it is known.
    """

    disk: object
    options: DeviceOptions
    source: DiskSpec | None
    state: h.DeviceState
    front_ends: Source | None = None
    device: Device | None = None
    session: Session | None = None
    rest: h.Rest | None = None


class Takeover:
    """
    All that another process hands over.  Made by `begin`.

    Args:
        courier: To that process.
        state: What it serves.
    """

    def __init__(self, courier: Courier, state: h.ServerState) -> None:
        self._courier = courier
        self._state = state
        self._plans: list[_Plan] = []
        self._unknown: list[str] = []
        self._control: Listener | None = None
        self._done = False

    @classmethod
    def begin(cls, environ: MutableMapping[str, str]) -> "Takeover | None":
        """
        Greet the process we were started by, if it is to take over; all is imported by now.

        Args:
            environ: The process's; what is meant for us is removed.

        Raises:
            VhostBlkError: It does not answer, or not in a way we know.
        """
        number = environ.pop(VARIABLE, None)
        if number is None:
            return None
        try:
            sock = socket.socket(fileno=int(number))
        except (ValueError, OSError) as error:
            raise VhostBlkError(f"{VARIABLE}={number} is no socket: unset it") from error
        sock.set_inheritable(False)
        courier = Courier(sock)
        try:
            hello = h.Hello(versions=(h.VERSION,), program=version(), pid=os.getpid())
            courier.send(hello, seconds=SECONDS)
            state = courier.receive(h.ServerState, seconds=SECONDS)
        except (VhostBlkError, TimeoutError) as error:
            raise VhostBlkError(f"the process we were to take over from: {error}") from error
        return cls(courier, state)

    @property
    def only(self) -> str:
        """
        Return the name of the device of a process that was started with one.

        Raises:
            VhostBlkError: It is not served any more.
        """
        started_with = [one.name for one in self._state.devices if one.added is None]
        if not started_with:
            raise VhostBlkError("what that process was started with was removed: stop and start")
        return started_with[0]

    def control(self) -> Listener | None:
        """Return the control socket."""
        state = self._state.control
        self._control = None if state is None else _listener(state)
        return self._control

    def close_control(self) -> None:
        """End the control socket, whose file is ours only if all the rest is."""
        if self._control is None:
            return
        if self._done:
            self._control.close()
        else:
            self._control.leave()

    def add(self, disk: object, options: DeviceOptions, source: DiskSpec | None = None) -> None:
        """Plan to go on with a device; see `Server.add`."""
        state = next((one for one in self._state.devices if one.name == options.name), None)
        if state is None:
            self._unknown.append(options.name)
        else:
            self._plans.append(_Plan(disk, options, source, state))

    async def go_on(self, server: Server) -> None:
        """
        Take over, with all devices that were added.

        Raises:
            VhostBlkError: It cannot be; the other process goes on.
        """
        try:
            last = await self._get_ready(server)
        except BaseException as error:
            for plan in self._plans:
                await _drop(plan)
            with suppress(VhostBlkError, TimeoutError):
                self._courier.send(h.Answer(refused=_line(error)), seconds=SECONDS)
            self._courier.hang_up()
            raise
        self._done = True
        # Whoever gave up on us would have killed us first: if nobody hears it, nobody else serves.
        with suppress(Gone):
            self._courier.send(h.Answer(), seconds=SECONDS)
        for plan in self._plans:
            _run(server, plan)
        paused = time.monotonic() - last.since
        _log.info("upgrade: guest paused for %.1f ms", paused * 1000)
        notify(f"MAINPID={os.getpid()}")  # while the other process is there to vouch for us
        with suppress(VhostBlkError, TimeoutError):
            self._courier.send(h.Done(paused_seconds=paused), seconds=SECONDS)
            await self._recall(server)
        self._courier.hang_up()

    async def _recall(self, server: Server) -> None:
        """Add what the other process has counted; rings run, so nothing of it may fail us."""
        told = await asyncio.to_thread(self._courier.receive, h.Totals, seconds=TOTALS_SECONDS)
        try:
            for one in told.devices:
                recall(server.services[one.name], one)
            for one in told.devices:
                await recall_layers(server.services[one.name], one)
        except Exception:  # noqa: BLE001 - rings run: nothing here may fail them
            _log.exception("upgrade: a bug of ours, and what was counted before is lost")

    async def _get_ready(self, server: Server) -> h.Last:
        """Open and map, and have the rest told; what must be closed there is opened here last."""
        await self._add_added()
        if left := self._left():
            names = ", ".join(one.name for one in left)
            raise VhostBlkError(f"{names} would not be served any more")
        if self._unknown:
            raise VhostBlkError(
                f"{', '.join(self._unknown)} is not served by the process we take over from: add "
                "it there first, or leave it out until then"
            )
        order = self._state.devices
        self._plans.sort(key=lambda plan: order.index(plan.state))
        for plan in self._plans:
            plan.front_ends = source(plan.state.source, Log(__name__, plan.options.name))
            if (fds := plan.state.disk) is not None:
                await _open(server, plan, partial(carry.adopt, fds=fds))
        self._courier.send(h.Answer(), seconds=SECONDS)
        last = await asyncio.to_thread(self._courier.receive, h.Last, seconds=SECONDS)
        rests = {one.name: one for one in last.devices}
        for plan in self._plans:
            plan.rest = rests[plan.options.name]
            if plan.state.disk is None:
                await _open(server, plan, partial(carry.restore, data=_saved(plan.rest)))
        return last

    def _left(self) -> list[h.DeviceState]:
        """Return devices that are not planned yet."""
        planned = {plan.options.name for plan in self._plans}
        return [one for one in self._state.devices if one.name not in planned]

    async def _add_added(self) -> None:
        """Plan devices that an operator has added: nothing we were started with knows of them."""
        for state in self._left():
            if state.added is None:
                continue
            try:
                settings = read_settings(state.added)
                disk = await asyncio.to_thread(make, settings.source)
            except VhostBlkError as error:
                raise VhostBlkError(f"{state.name}: {error}") from error
            self.add(disk, settings.options, settings.source)


async def _open(server: Server, plan: _Plan, before: Before) -> None:
    engine, state = server.engine, plan.state
    if state.spec is not None and plan.source is not None and state.spec != str(plan.source):
        # An operator has replaced it since that process was started.
        plan.source = parse(state.spec)
        plan.disk = make(plan.source)
    plan.device = await open_device(
        plan.disk,
        engine,
        plan.options,
        plan.source,
        before=before,
        promised=promised(state, plan.options),
    )
    plan.device.replaced = state.promised is not None
    check_device(plan.device, state)
    plan.device.config.writeback = state.writeback
    plan.device.served = state.served
    if state.locked:
        plan.device.tenure.adopt()
    if state.front_end is not None:
        plan.session = restore(plan.device, state.front_end)


def _run(server: Server, plan: _Plan) -> None:
    device, session, front_end = plan.device, plan.session, plan.state.front_end
    if device is None or plan.rest is None or plan.front_ends is None:
        raise AssertionError("all of them are open by now")
    service = Service(device, plan.front_ends, added=plan.state.added)
    server.services[service.name] = service
    if session is not None and front_end is not None:
        try:
            resume(session, front_end, plan.rest)
        except Exception:
            device.log.exception("a bug of ours, going on with its queues")
    service.take_over(session)


async def _drop(plan: _Plan) -> None:
    if plan.front_ends is not None:
        plan.front_ends.leave()
    if plan.device is not None:
        plan.device.tenure.hand_over()  # back
    if plan.session is not None:
        plan.session.drop()
        await plan.session.close()
    if plan.device is not None:
        await plan.device.leave()


def source(state: h.SourceState, log: Log) -> Source:
    """
    Return where the front-ends of a device come from, as another process has left it.

    Raises:
        VhostBlkError: It is none.
    """
    if state.kind == "connecting" and state.path is not None:
        return connect(Path(state.path), log)
    return Spent() if state.fd is None else _listener(state)


def _listener(state: h.SourceState) -> Listener:
    sock = socket.socket(fileno=state.fd)
    return Listener(sock, None if state.path is None else Path(state.path))


def _saved(rest: h.Rest) -> bytes:
    if rest.saved is None:
        raise VhostBlkError(f"{rest.name}: the disk was not saved")
    with os.fdopen(rest.saved, "rb") as file:
        file.seek(0)
        return file.read()


def _line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())
