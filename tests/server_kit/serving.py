"""A server on a thread of its own, as a program would run it, for the fake guest to connect to."""

import asyncio
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop

from vhostblk.disk.grammar import DiskSpec, parse
from vhostblk.disk.make import make
from vhostblk.engine.api import Engine
from vhostblk.engine.choose import EngineName, load
from vhostblk.errors import VhostBlkError
from vhostblk.server.device import Device
from vhostblk.server.heir import Patience
from vhostblk.server.jsonrpc import Json
from vhostblk.server.listener import SocketOptions, listen
from vhostblk.server.operations import Operations
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.server import Server
from vhostblk.server.service import Service
from vhostblk.server.status import status
from vhostblk.server.upgrade import Upgrade

_T = TypeVar("_T")
PATIENCE = 10.0
"""Seconds after which a test gives up."""


class Serving:
    """
    Devices being served on one loop.

    Args:
        engine: Which data plane.
        directory: For sockets.
        workers: Threads of a native one at most.
    """

    def __init__(self, engine: EngineName, directory: Path, workers: int | None = None) -> None:
        self._engine = engine
        self._workers = workers
        self.directory = directory
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="server")
        self._count = 0
        self.devices: list[Device] = []

    def start(self) -> None:
        """Return when the server is up."""
        self._thread.start()
        assert self._up.wait(PATIENCE)

    def _main(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._failure = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with Server(make_engine(self._engine, self._workers)) as server:
            self._server = server
            self.upgrade = Upgrade(server, None, self._stop.set)
            self.operations = Operations(server, self.upgrade, self._stop.set)
            self._up.set()
            await self._stop.wait()

    def set_patience(self, patience: Patience) -> None:
        """Say how long an upgrade may take, from the next one on."""
        assert self._server is not None
        self.upgrade = Upgrade(self._server, None, self._stop.set, patience)

    def run(self, work: Coroutine[object, object, _T]) -> _T:
        """Run *work* on the server's loop and return what it does."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    @property
    def services(self) -> dict[str, Service]:
        """Return what is served."""
        assert self._server is not None
        return self._server.services

    def ask(self, question: Callable[[], _T]) -> _T:
        """Ask *question* on the server's loop."""

        async def asked() -> _T:
            return question()

        return self.run(asked())

    def add(self, disk: object, **options: object) -> Path:
        """Serve one more disk; return its socket."""
        return self.add_from(None, disk, **options)

    def add_from(self, source: DiskSpec | None, disk: object, **options: object) -> Path:
        """Serve a disk that was written so."""
        self._count += 1
        path = self.directory / f"s{self._count}"
        chosen = DeviceOptions(**{"name": path.name, "drain_seconds": 2.0, **options})  # type: ignore[arg-type]

        async def add() -> Device:
            assert self._server is not None
            return await self._server.add(disk, listen(path, SocketOptions()), chosen, source)

        self.devices.append(self.run(add()))
        return path

    def add_written(self, text: str) -> Path:
        """Serve a disk that is written so."""
        source = parse(text)
        return self.add_from(source, make(source))

    def layer(self, name: str, **what: Json) -> dict[str, Json]:
        """Do something to a layer of the first device; return what that says of it."""
        answer = self.run(self.operations.layer("s1", name, **what))  # type: ignore[arg-type]
        assert isinstance(answer, dict)
        return answer

    def layers_shown(self) -> object:
        """Return what the status document says of the layers of the first device."""
        self.run(self.operations.status("s1"))
        return self.ask(lambda: status(self.devices[0])["layers"])

    def stop(self) -> None:
        """End as SIGTERM does; raises what the server raised."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server does not end"
        if self._failure is not None:
            raise self._failure


def make_engine(name: EngineName, workers: int | None = None) -> Engine:
    """Make a data plane; a test that needs one that is not built is skipped."""
    try:
        return load(name, workers=workers)
    except VhostBlkError as error:
        pytest.skip(f"the compiled core is not built (make venv): {error}")


@contextmanager
def serving(engine: EngineName, *, workers: int | None = None) -> Iterator[Serving]:
    """Run a server; its sockets are in a directory with a short name."""
    with tempfile.TemporaryDirectory(prefix="vhb") as directory:
        server = Serving(engine, Path(directory), workers)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait for *condition*; tell whether it came true in time."""
    waited = threading.Event()
    for _ in range(int(seconds * 200)):
        if condition():
            return True
        waited.wait(0.005)
    return condition()


def names(calls: Sequence[tuple[object, ...]]) -> list[object]:
    """Return the first word of every call."""
    return [call[0] for call in calls]
