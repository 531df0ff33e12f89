"""A server in this process, on a thread of its own, as tests need it."""

import asyncio
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import uvloop

from vhostblk.disk.grammar import DiskSpec, parse
from vhostblk.disk.make import make
from vhostblk.engine.choose import EngineName, load
from vhostblk.errors import VhostBlkError
from vhostblk.server.device import Device
from vhostblk.server.listener import SocketOptions, listen
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.server import Server

_T = TypeVar("_T")
PATIENCE = 30.0
"""Seconds after which start, stop or a disk's open has failed."""
QUEUES = 4
"""Queues of a device unless somebody says otherwise."""


class Host:
    """
    Serves disks until it is closed; a context manager.

    Args:
        engine: Which data plane: ``auto``, ``native`` or ``reference``.
        workers: Threads of a native one at most; ``None``: one for each CPU.
        directory: For sockets; it must have a short name.  ``None``: one that goes at the end.

    Raises:
        VhostBlkError: The data plane is not there.
    """

    def __init__(
        self,
        engine: EngineName = "auto",
        *,
        workers: int | None = None,
        directory: Path | None = None,
    ) -> None:
        self._engine = load(engine, workers=workers)
        self._own = (
            None if directory is not None else tempfile.TemporaryDirectory(prefix="vhostblk-")
        )
        self.directory = Path(self._own.name) if self._own else directory or Path()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Server | None = None
        self._stop = asyncio.Event()
        self._up = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="vhostblk-host", daemon=True)
        self._count = 0
        self._thread.start()
        if not self._up.wait(PATIENCE):
            raise VhostBlkError("the server in this process does not start")
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, disk: object, *, num_queues: int = QUEUES, **options: object) -> Path:
        """
        Serve one more disk.

        Args:
            disk: Any object that meets the `Disk` contract, or a disk named as text; opened here,
                and closed with the host.
            num_queues: How many queues a guest may use.
            **options: Others of ``DeviceOptions``: ``serial``, ``queue_size``, ``read_only``,
                ``block_size``, ``packed``, ``drain_seconds``, ….

        Returns:
            Its socket.

        Raises:
            VhostBlkError: The disk cannot be had, or not so.
        """
        self._count += 1
        path = self.directory / f"s{self._count}"
        fields: dict[str, object] = {"name": path.name, "drain_seconds": 2.0, **options}
        chosen = DeviceOptions(**fields, num_queues=num_queues)  # type: ignore[arg-type]  # theirs
        source = parse(disk) if isinstance(disk, str) else None
        made = disk if source is None else make(source)
        self.run(self._add(made, path, chosen, source))
        return path

    def run(self, work: Coroutine[object, object, _T]) -> _T:
        """Run *work* on the server's loop and return what it does."""
        assert self._loop is not None, "it has begun"  # noqa: S101 - our own promise
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def close(self) -> None:
        """
        End as SIGTERM does: drain, flush, close the disks; again is harmless.

        Raises:
            VhostBlkError: It does not end, or a last flush failed.
        """
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise VhostBlkError("the server in this process does not end: a disk is stuck")
        if self._own is not None:
            self._own.cleanup()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    async def _add(
        self, disk: object, path: Path, options: DeviceOptions, source: DiskSpec | None
    ) -> Device:
        assert self._server is not None, "it has begun"  # noqa: S101 - our own promise
        return await self._server.add(disk, listen(path, SocketOptions()), options, source)

    def _main(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._failure = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with Server(self._engine) as server:
            self._server = server
            self._up.set()
            await self._stop.wait()


@contextmanager
def serving(
    disk: object, *, engine: EngineName = "auto", workers: int | None = None, **options: object
) -> Iterator[Path]:
    """
    Serve one disk in this process for as long as the ``with`` block runs.

    Args:
        disk: As for ``Host.add``.
        engine: As for ``Host``.
        workers: As for ``Host``.
        **options: As for ``Host.add``.

    Yields:
        Its socket.

    Raises:
        VhostBlkError: It cannot be had.
    """
    with Host(engine, workers=workers) as host:
        yield host.add(disk, **options)  # type: ignore[arg-type]  # num_queues is one of them
