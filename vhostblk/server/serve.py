"""Serve one disk until told to stop: what the library's `vhostblk.serve` and programs call."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import uvloop

from vhostblk.engine.choose import EngineName, load
from vhostblk.errors import VhostBlkError
from vhostblk.server.listener import Listener, SocketOptions, adopt, listen
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.server import Server

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STATUS_SIGNAL = signal.SIGUSR1
"""Asks for the status of every device, in the log."""


def serve_disk(  # noqa: PLR0913 - one for each thing a user may want to say
    disk: object,
    socket_path: str | os.PathLike[str] | None = None,
    *,
    fd: int | None = None,
    engine: EngineName = "auto",
    socket: SocketOptions | None = None,
    options: DeviceOptions | None = None,
    ready: Callable[[], None] | None = None,
) -> None:
    """
    Serve a disk on a socket until SIGTERM or SIGINT; then drain, flush, close and return.

    SIGUSR1 logs the status document.

    Args:
        disk: Any object that meets the `Disk` contract; closed at the end.
        socket_path: Where to listen.
        fd: Instead: a socket that somebody opened, listening or connected; taken over.
        engine: ``auto``, ``native`` or ``reference``.
        socket: Who may connect to *socket_path*.
        options: What to ask of the device.
        ready: Called once front-ends can connect.

    Raises:
        VhostBlkError: The disk or the socket cannot be had, or the last flush failed.
    """
    if (socket_path is None) == (fd is None):
        raise VhostBlkError("say where to serve: a socket path, or the fd of a socket")
    # The socket first: who asks for a taken one should not have locked the disk meanwhile.
    if socket_path is None:
        listener = adopt(-1 if fd is None else fd)
    else:
        listener = listen(Path(socket_path), socket or SocketOptions())
    options = options or DeviceOptions(name=device_name(socket_path, fd))
    uvloop.run(_serve(disk, listener, engine, options, ready))


def device_name(path: str | os.PathLike[str] | None, fd: int | None) -> str:
    """Return what log lines call a device that nobody named."""
    return f"fd {fd}" if path is None else Path(path).name


async def _serve(
    disk: object,
    listener: Listener,
    engine: EngineName,
    options: DeviceOptions,
    ready: Callable[[], None] | None,
) -> None:
    told = asyncio.Event()
    _on_signals(told.set, *SIGNALS)
    try:
        plane = load(engine)
    except BaseException:
        listener.close()
        raise
    async with Server(plane) as server:
        _on_signals(server.report, STATUS_SIGNAL)
        await server.add(disk, listener, options)
        if ready is not None:
            ready()
        ended = {asyncio.ensure_future(told.wait()), asyncio.ensure_future(server.wait())}
        _, left = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()


def _on_signals(heed: Callable[[], None], *numbers: signal.Signals) -> None:
    # Python hands signals to its main thread only; elsewhere the process's owner minds them.
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            asyncio.get_running_loop().add_signal_handler(number, heed)
