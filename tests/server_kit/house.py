"""A device that is served without a socket of its own: front-ends come when a test says so."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from server_kit.disks import Ram
from server_kit.engine import FakeEngine
from server_kit.wire import Wire
from vhostblk.server.device import open_device
from vhostblk.server.gate import Brake
from vhostblk.server.handover import SourceState
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.service import Service

PATIENCE = 10.0


class Sockets:
    """Connections that a test makes."""

    path: Path | None = None

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[socket.socket | None] = asyncio.Queue()
        self.brake = Brake(lambda: None)

    async def accept(self) -> socket.socket | None:
        return await self._waiting.get()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._waiting.put_nowait(theirs)
        return ours

    def share(self) -> SourceState:
        return SourceState(kind="connected")

    def leave(self) -> None:
        self.close()

    def close(self) -> None:
        self._waiting.put_nowait(None)


class Caller(Wire):
    """A front-end whose side of the connection is the service's business."""

    def __init__(self, sock: socket.socket, engine: FakeEngine) -> None:
        sock.settimeout(0)
        self.sock = sock
        self.engine = engine


class House:
    """A device being served, and the front-ends that come to it."""

    def __init__(self, engine: FakeEngine, service: Service, source: Sockets) -> None:
        self.engine = engine
        self.service = service
        self._source = source

    def connect(self) -> Caller:
        """Come to it; whether it answers is another question."""
        return Caller(self._source.connect(), self.engine)

    async def until(self, done: Callable[[], bool]) -> None:
        for _ in range(int(PATIENCE * 1000)):
            if done():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("it never came true")


@asynccontextmanager
async def house(disk: object = None, **options: object) -> AsyncIterator[House]:
    """Serve a device, and leave nothing of it."""
    engine, source = FakeEngine(), Sockets()
    chosen = DeviceOptions(**{"drain_seconds": 5.0, **options})  # type: ignore[arg-type]
    device = await open_device(disk or Ram(), engine, chosen)
    service = Service(device, source)
    service.start()
    try:
        yield House(engine, service, source)
    finally:
        await asyncio.wait_for(service.end(), PATIENCE)
        assert all(queue.closed for queue in engine.queues)
