"""Disks that users might write, good ones and bad ones."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.file import File
from vhostblk.disk.memory import Memory

SIZE = 1 << 20


class Ram(Disk):
    """Plain methods; notes what is asked of it."""

    def __init__(self, size: int = SIZE) -> None:
        self.data = bytearray(size)
        self.calls: list[tuple[object, ...]] = []
        self.threads: set[str] = set()

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)

    def open(self) -> None:
        self._note("open")

    def close(self) -> None:
        self._note("close")

    def info(self) -> DiskInfo:
        return DiskInfo(size=len(self.data))

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self._note("read", offset)
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        self._note("write", offset)
        for view in views:
            assert view.readonly
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self) -> None:
        self._note("flush")

    def discard(self, offset: int, length: int) -> None:
        self._note("discard", offset)
        self.data[offset : offset + length] = bytes(length)


class Saving(Ram):
    """Carried over by what it saves."""

    def save(self) -> bytes:
        self._note("save")
        return bytes(self.data)

    async def restore(self, data: bytes) -> None:
        self._note("restore")
        self.data = bytearray(data)


class Slow:
    """``async`` reads and writes that wait for `gate`; nothing but the two duties and write."""

    def __init__(self, size: int = SIZE) -> None:
        self.data = bytearray(size)
        self.gate: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.waiting = 0
        self.cancelled = 0

    async def open(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.gate = asyncio.Event()
        self.gate.set()

    def set(self, *, free: bool) -> None:
        """Let requests pass, or not; from any thread."""
        assert self.gate is not None
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.gate.set if free else self.gate.clear)

    async def _pass(self) -> None:
        assert self.gate is not None
        self.waiting += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1

    def info(self) -> DiskInfo:
        return DiskInfo(size=len(self.data))

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        await self._pass()
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    async def write(self, offset: int, views: Sequence[memoryview]) -> None:
        await self._pass()
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)


class Stuck(Ram):
    """A plain read that does not return until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.stuck = threading.Event()

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self.stuck.set()
        self.let_go.wait()
        super().read(offset, views)


class Keeper(Ram):
    """Keeps a slice of every read, which it must not."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[memoryview] = []

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        super().read(offset, views)
        self.kept.append(views[0][:1])


class Failing(Ram):
    """Raises what it is told to, until it is told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        if self.error is not None:
            raise self.error
        super().write(offset, views)


def made(kind: str, directory: Path, python: Callable[[int], object] = Ram) -> object:
    """
    Make a disk of 1 MiB.

    Args:
        kind: ``file``, ``memory``, or any other word for one in Python.
        directory: Of the file.
        python: Makes that in Python.
    """
    if kind == "memory":
        return Memory(SIZE)
    if kind != "file":
        return python(SIZE)
    image = directory / "disk.img"
    image.write_bytes(bytes(SIZE))
    return File(image)
