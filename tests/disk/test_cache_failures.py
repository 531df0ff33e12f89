"""What a cache does when the disk below fails: no error is lost, and no data."""

import asyncio
import errno

import pytest
from layer_kit.caches import MODES, small
from layer_kit.disks import SECTOR, Plain, Views
from layer_kit.model import (
    BASE,
    SIZE,
    Request,
    ask,
    compare,
    content,
    opened,
)

from vhostblk.disk.cache import Cache
from vhostblk.disk.call import run


class Broken(Plain):
    """Takes no write while it is broken; can fail its flush."""

    broken = False
    flushable = True

    def write(self, offset: int, views: Views) -> None:
        """Write, if it can be done."""
        if self.broken:
            raise OSError(errno.EIO, "broken")
        super().write(offset, views)

    def flush(self) -> None:
        """Flush, if it can be done."""
        if not self.flushable:
            raise OSError(errno.EIO, "no flush")
        super().flush()


def test_what_cannot_be_written_back_is_told_at_the_flush() -> None:
    """It stays, is read, and is there when a flush succeeds: no error is lost, and no data."""

    async def check() -> None:
        disk, model = Broken(BASE), bytearray(BASE)
        cache = small(disk, "writeback")
        calls = await opened(cache)
        disk.broken = True
        one = Request("write", 0, 64, 1)
        await compare(calls, model, [one])
        for _ in range(2):
            with pytest.raises(OSError, match="broken"):
                await run(calls.flush)
        assert disk.flushes == 0
        assert await content(calls) == model
        disk.broken = False
        await run(calls.flush)
        assert disk.data == model
        assert disk.flushes == 1
        disk.flushable = False
        with pytest.raises(OSError, match="no flush"):
            await run(calls.flush)
        disk.flushable = True
        await run(calls.close)

    asyncio.run(check())


def test_memory_does_not_grow_with_what_is_not_taken() -> None:
    """Where the room is full of what cannot be written back, a write fails."""

    async def check() -> None:
        disk = Broken(BASE)
        cache = small(disk, "writeback", 4 * 4096)
        calls = await opened(cache)
        disk.broken = True
        for first in range(0, 40, 8):
            await ask(calls, Request("write", first, 8, 1))
        with pytest.raises(OSError, match="broken"):
            await ask(calls, Request("write", 40, 8, 1))
        held = cache.settings()["held"]
        assert isinstance(held, int)
        assert held <= 6 * 4096
        disk.broken = False
        await run(calls.close)
        assert disk.data[: 4 * 4096] != BASE[: 4 * 4096]

    asyncio.run(check())


def test_what_is_lost_at_the_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A disk that takes it no more is closed all the same; a line says how many bytes."""

    async def check() -> None:
        disk = Broken(BASE)
        calls = await opened(Cache(disk, mode="writeback"))
        await ask(calls, Request("write", 0, 8, 1))
        disk.broken = True
        with pytest.raises(OSError, match="broken"):
            await run(calls.close)
        assert "cache: 4096 bytes that were written are lost" in caplog.text

    asyncio.run(check())


@pytest.mark.parametrize("mode", MODES)
def test_a_write_that_fails_leaves_nothing_behind(mode: str) -> None:
    """A write-through cache forgets what it had there; FUA says so at once in both modes."""

    async def check() -> None:
        disk = Broken(BASE)
        calls = await opened(Cache(disk, mode=mode))
        await ask(calls, Request("read", 0, 16))
        disk.broken = True
        with pytest.raises(OSError, match="broken"):
            await ask(calls, Request("fua", 0, 8, 1))
        disk.broken = False
        if mode == "writethrough":
            disk.data[0] ^= 1
            assert await ask(calls, Request("read", 0)) == disk.data[:SECTOR]
        await run(calls.close)

    asyncio.run(check())


def test_a_discard_that_fails_forgets_nothing() -> None:
    """What was acknowledged before it is still here, and written back later."""

    class Stiff(Plain):
        def discard(self, offset: int, length: int) -> None:
            """Fail."""
            raise OSError(errno.EIO, f"{length} at {offset}")

    async def check() -> None:
        disk, model = Stiff(BASE), bytearray(BASE)
        calls = await opened(Cache(disk, mode="writeback"))
        await compare(calls, model, [Request("write", 0, 24, 1)])
        with pytest.raises(OSError, match="2048 at 2048"):
            await ask(calls, Request("discard", 4, 4))
        assert await content(calls) == model
        await run(calls.close)
        assert disk.data == model

    asyncio.run(check())


class Shared(Broken):
    """Locked while rings run; notes what was below when it was left to others."""

    lock_while_running = True
    left = b""

    def lock(self) -> None:
        """Take it."""

    def unlock(self) -> None:
        """Leave it."""
        self.left = bytes(self.data)


def test_a_disk_is_left_to_others_with_all_that_was_written() -> None:
    """Unlock writes back; what others change then is read behind the next lock."""

    async def check() -> None:
        disk, model = Shared(BASE), bytearray(BASE)
        calls = await opened(Cache(disk, mode="writeback"))
        await run(calls.lock)
        await compare(calls, model, [Request("write", 3, 20, 1)])
        disk.broken = True
        with pytest.raises(OSError, match="broken"):
            await run(calls.unlock)
        assert not disk.left
        disk.broken = False
        await run(calls.unlock)
        assert disk.left == model
        disk.data[:] = bytes(SIZE)
        await run(calls.lock)
        assert await content(calls) == bytes(SIZE)
        await run(calls.close)

    asyncio.run(check())
