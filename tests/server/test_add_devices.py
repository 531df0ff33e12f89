"""Devices of a configuration file, whose disks are opened together."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from locks import held_bytes
from server_kit.engine import FakeEngine

from vhostblk.disk import lock
from vhostblk.errors import VhostBlkError
from vhostblk.server import settings
from vhostblk.server.server import Server
from vhostblk.server.settings import Settings, add_devices, read_settings


class Orphans:
    """Images with the locks of processes that are gone, until these are let go."""

    def __init__(self, directory: Path, names: str) -> None:
        self.directory = directory
        self._fds: dict[str, int] = {}
        for name in names:
            path = self.path(name)
            path.write_bytes(bytes(4096))
            self._fds[name] = os.open(path, os.O_RDWR)
            lock.acquire(self._fds[name], str(path), write=True)

    def path(self, name: str) -> Path:
        return self.directory / name

    def let_go(self, name: str) -> None:
        os.close(self._fds.pop(name))

    def close(self) -> None:
        for name in tuple(self._fds):
            self.let_go(name)

    def devices(self, *more: str) -> Sequence[Settings]:
        """Return all of them, and more disks, each as a device."""
        disks = {**{name: str(self.path(name)) for name in self._fds}, **{one: one for one in more}}
        return [
            read_settings({"disk": disk, "name": name, "socket_path": f"{self.directory}/s{at}"})
            for at, (name, disk) in enumerate(disks.items())
        ]


@pytest.fixture
def orphans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Orphans:
    """Return three images that are locked by nobody who lives."""
    monkeypatch.setattr(lock, "_holder", lambda *_: None)
    monkeypatch.setattr(settings, "PROGRESS_SECONDS", 0.01)
    return Orphans(tmp_path, "abc")


@asynccontextmanager
async def adding(
    devices: Sequence[Settings],
) -> AsyncIterator[tuple[Server, "asyncio.Task[None]"]]:
    async with Server(FakeEngine()) as server:
        yield server, asyncio.ensure_future(add_devices(server, devices))


async def until(true: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came true")


def run(work: Awaitable[None], orphans: Orphans) -> None:
    async def bounded() -> None:
        await work

    try:
        uvloop.run(bounded())
    finally:
        orphans.close()


def test_each_waits_for_its_own_lock_and_their_order_is_the_files(
    orphans: Orphans, caplog: pytest.LogCaptureFixture
) -> None:
    """The last one opens first; who is still waited for is told now and then."""
    caplog.set_level("INFO")

    async def open_backwards() -> None:
        async with adding(orphans.devices()) as (server, task):
            await until(lambda: "0 of 3 disks are open: waiting for a, b, c" in caplog.text)
            for name, said in (("c", "1 of 3 disks are open: waiting for a, b"), ("b", "for a")):
                orphans.let_go(name)
                await until(lambda name=name: name in server.services)  # type: ignore[misc]
                await until(lambda said=said: said in caplog.text)  # type: ignore[misc]
            assert [*server.services] == ["c", "b"]
            orphans.let_go("a")
            await task
            assert [*server.services] == ["a", "b", "c"]

    run(open_backwards(), orphans)


def test_one_that_cannot_be_had_calls_the_others_off(orphans: Orphans) -> None:
    """Its error is told at once, not when the others have waited; nothing is left of them."""

    async def fail() -> None:
        async with adding(orphans.devices("/no/such")) as (server, task):
            async with asyncio.timeout(lock.ORPHAN_SECONDS / 3):
                with pytest.raises(VhostBlkError, match=r"^/no/such: .*no such file"):
                    await task
            assert not server.services

    run(fail(), orphans)
    assert not any(held_bytes(orphans.path(name)) for name in "abc")
    assert not [*orphans.directory.glob("s*")]


def test_told_to_stop_meanwhile(orphans: Orphans) -> None:
    """Whoever waits is called off, and what is open is closed."""

    async def stop() -> None:
        async with adding(orphans.devices()) as (server, task):
            orphans.let_go("b")
            await until(lambda: "b" in server.services)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(stop(), orphans)
    assert not any(held_bytes(orphans.path(name)) for name in "abc")
    assert not [*orphans.directory.glob("s*")]
