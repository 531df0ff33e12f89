"""Serve one disk until told to stop: what the library's `vhostblk.serve` and programs call."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import uvloop

from vhostblk.disk.grammar import DiskSpec
from vhostblk.disk.make import make
from vhostblk.engine.api import Engine, OnError
from vhostblk.engine.choose import EngineName, load, preload
from vhostblk.engine.poll import Poll
from vhostblk.errors import VhostBlkError
from vhostblk.server.activation import Passed, passed_sockets
from vhostblk.server.config_file import Config
from vhostblk.server.control import Control
from vhostblk.server.jsonrpc import Dispatcher
from vhostblk.server.listener import Listener, SocketOptions, listen
from vhostblk.server.notify import notify
from vhostblk.server.operations import Operations
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.reread import Rereader
from vhostblk.server.server import Server
from vhostblk.server.settings import add_devices
from vhostblk.server.takeover import Takeover
from vhostblk.server.upgrade import Upgrade
from vhostblk.server.where import TAKEN_OVER, Where

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STATUS_SIGNAL = signal.SIGUSR1
"""Asks for the status of every device, in the log."""
REREAD_SIGNAL = signal.SIGHUP
"""Has the configuration file read again."""
UPGRADE_SIGNAL = signal.SIGUSR2
"""Has another process, started in the same way, take over; the log says how that went."""


def serve_disk(  # noqa: PLR0913 - one for each thing a user may want to say
    disk: object,
    place: Where,
    *,
    engine: EngineName = "auto",
    workers: int | None = None,
    cpus: Sequence[int] = (),
    poll: Poll | None = None,
    socket: SocketOptions | None = None,
    options: DeviceOptions | None = None,
    control: str | os.PathLike[str] | None = None,
    source: DiskSpec | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """
    Serve a disk on a socket until SIGTERM or SIGINT; then drain, flush, close and return.

    SIGUSR1 logs the status document, SIGUSR2 has a new process take over.  A service manager is
    told how we are; see `notify`.

    Args:
        disk: Any object that meets the `Disk` contract; closed at the end.
        place: Where front-ends come from.
        engine: ``auto``, ``native`` or ``reference``.
        workers: Threads of the native one at most; None: one for each CPU.
        cpus: The CPU of each of these, in their order; none: they run on any.
        poll: How long one of them looks on before it sleeps; None: as it pays.
        socket: Who may connect to a socket path.
        options: What to ask of the device.
        control: Where to listen for operators; None: nowhere.
        source: The disk as it was written, if it was.
        ready: Called once front-ends can connect.

    Raises:
        VhostBlkError: The disk or the socket cannot be had, or the last flush failed.
    """
    options = options or DeviceOptions(name=place.name)
    if options.on_error is not OnError.REPORT and control is None:
        raise VhostBlkError(
            f"on_error {options.on_error} stops the guest's disk until an operator says go on: "
            "give a control socket, too, for `vhostblk ctl resume`"
        )
    preload(engine)
    plane = partial(load, engine, workers=workers, cpus=cpus, poll=poll)
    takeover = Takeover.begin(os.environ)
    if takeover is not None:
        _take_over(takeover, disk, plane, options, source, ready)
        return
    # The sockets first: who asks for a taken one should not have locked the disk meanwhile.
    with ExitStack() as sockets:
        operators = None if control is None else listen(Path(control), SocketOptions())
        if operators is not None:
            sockets.callback(operators.close)
        listener = place.open(socket or SocketOptions(), options.name)
        sockets.callback(listener.close)

        async def add(server: Server) -> None:
            await server.add(disk, listener, options, source)

        uvloop.run(_serve(add, plane, operators, ready))


def serve_config(config: Config, *, ready: Callable[[], None] | None = None) -> None:
    """
    Serve what a configuration file says until SIGTERM or SIGINT; SIGHUP reads it again.

    Args:
        config: As it was read.
        ready: Called once front-ends can connect.

    Raises:
        VhostBlkError: A disk or a socket cannot be had, or a last flush failed.
    """
    preload(config.engine)
    plane = partial(load, config.engine, workers=config.workers, cpus=config.cpus, poll=config.poll)
    passed = _passed(config)
    takeover = Takeover.begin(os.environ)

    def follow(server: Server) -> Rereader:
        rereader = Rereader(server, config)
        _on_signals(rereader.ask, REREAD_SIGNAL)
        return rereader

    with ExitStack() as sockets:
        if takeover is not None:
            for one in config.devices:
                takeover.add(make(one.source), one.options, one.source)
            operators = takeover.control()
            sockets.callback(takeover.close_control)
        else:
            operators = None if config.control is None else listen(config.control, SocketOptions())
            if operators is not None:
                sockets.callback(operators.close)

        async def add(server: Server) -> None:
            await add_devices(server, config.devices, passed)

        begin = add if takeover is None else takeover.go_on
        uvloop.run(
            _serve(begin, plane, operators, ready, follow=follow, interruptible=takeover is None)
        )


def _passed(config: Config) -> Sequence[Passed]:
    passed = passed_sockets(os.environ, os.getpid())
    wanted = {one.place.systemd for one in config.devices}
    if lost := [one.name for one in passed if one.name not in wanted]:
        raise VhostBlkError(
            f"systemd has passed sockets that no device is for ({', '.join(lost)}): say "
            f"systemd = {lost[0]!r} in one, or disable the unit"
        )
    return passed


def _take_over(  # noqa: PLR0913, PLR0917 - see `serve_disk`
    takeover: Takeover,
    disk: object,
    plane: Callable[[], Engine],
    options: DeviceOptions,
    source: DiskSpec | None,
    ready: Callable[[], None] | None,
) -> None:
    if options.name == TAKEN_OVER:
        options = replace(options, name=takeover.only)
    takeover.add(disk, options, source)
    operators = takeover.control()
    with ExitStack() as sockets:
        sockets.callback(takeover.close_control)
        uvloop.run(_serve(takeover.go_on, plane, operators, ready, interruptible=False))


async def _serve(  # noqa: PLR0913 - two callers, here
    add: Callable[[Server], Awaitable[None]],
    plane: Callable[[], Engine],
    operators: Listener | None,
    ready: Callable[[], None] | None,
    *,
    follow: Callable[[Server], Rereader | None] = lambda _: None,
    interruptible: bool = True,
) -> None:
    told, handed_over = asyncio.Event(), asyncio.Event()
    _on_signals(told.set, *SIGNALS)
    async with Server(plane()) as server:
        upgrade = Upgrade(server, operators, handed_over.set)
        _on_signals(server.report, STATUS_SIGNAL)
        # A disk may have to be waited for.  Who takes over is not interrupted: the other one waits.
        never = asyncio.Event()
        if not await _unless(add(server), told if interruptible else never):
            return
        async with _controlled(server, operators, upgrade, told.set):
            _on_signals(upgrade.ask, UPGRADE_SIGNAL)
            rereader = follow(server)
            if ready is not None:
                ready()
            notify("READY=1", f"STATUS=serving {_names(server)}")
            await _first(told.wait(), handed_over.wait(), server.wait())
            await upgrade.cancel()
            if rereader is not None:
                await rereader.close()
            if upgrade.lost is not None:
                raise upgrade.lost
            if upgrade.successor is None:
                notify("STOPPING=1", "STATUS=draining and flushing")
            elif told.is_set():
                os.kill(upgrade.successor, signal.SIGTERM)  # it was meant for who serves


def _names(server: Server) -> str:
    return ", ".join(server.services)


async def _unless(work: Awaitable[None], told: asyncio.Event) -> bool:
    """Do *work* unless *told* to stop; whether it was done."""
    doing = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(told.wait())
    try:
        await asyncio.wait({doing, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait([doing])
    if doing.cancelled():
        return False
    doing.result()
    return True


async def _first(*waits: Coroutine[object, object, object]) -> None:
    """Return when one of them has."""
    tasks = {asyncio.ensure_future(one) for one in waits}
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


@asynccontextmanager
async def _controlled(
    server: Server, operators: Listener | None, upgrade: Upgrade, stop: Callable[[], None]
) -> AsyncIterator[None]:
    """Let operators change what is served."""
    if operators is None:
        yield
        return
    control = Control(operators, Dispatcher(Operations(server, upgrade, stop).methods()))
    control.start()
    try:
        yield
    finally:
        await control.close()


def _on_signals(heed: Callable[[], None], *numbers: signal.Signals) -> None:
    # Python hands signals to its main thread only; elsewhere the process's owner minds them.
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, heed)
