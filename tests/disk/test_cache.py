"""What a cache keeps, and when the disk below gets it."""

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_kit.caches import MODES, small
from layer_kit.disks import SECTOR, Below, Late, Plain, Views
from layer_kit.model import (
    BASE,
    SECTORS,
    SIZE,
    Request,
    apart,
    apply,
    ask,
    at_once,
    compare,
    content,
    opened,
    requests,
)

from vhostblk.disk.api import Extent
from vhostblk.disk.cache import Cache, build
from vhostblk.disk.call import run, starts_writeback
from vhostblk.disk.null import Null
from vhostblk.errors import VhostBlkError


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("below", [Plain, Late])
@given(sequence=st.lists(requests(), max_size=25))
@settings(max_examples=8)
def test_a_cache_is_the_disk_below(below: Below, mode: str, sequence: Sequence[Request]) -> None:
    """It reads as what was written; at a flush, and at its end, the disk below has all of it."""

    async def check() -> None:
        disk, model = below(BASE), bytearray(BASE)
        calls = await opened(small(disk, mode))
        for one in sequence:
            await compare(calls, model, [one])
            if one.op == "flush" or mode == "writethrough":
                assert disk.data == model
            if one.op == "fua":
                where = slice(one.offset, one.offset + one.length)
                assert disk.data[where] == model[where]
        await run(calls.close)
        assert disk.data == model

    asyncio.run(check())


async def check_at_once(mode: str, sequence: Sequence[Request], seed: int, held: int) -> None:
    """Carry requests out together; nothing of them is lost."""
    disk, model, together = Late(BASE, seed), bytearray(BASE), apart(sequence)
    calls = await opened(small(disk, mode, held * 4096))
    for one in together:
        apply(model, one)
    assert await at_once(calls, together) == model
    await run(calls.flush)
    assert disk.data == model
    await run(calls.close)


AT_ONCE = (
    st.lists(requests(40), max_size=30),
    st.integers(0, 99),
    st.sampled_from((1, 3, 100)),
)


@pytest.mark.parametrize("mode", MODES)
@given(sequence=AT_ONCE[0], seed=AT_ONCE[1], held=AT_ONCE[2])
@settings(max_examples=25)
def test_requests_at_once_lose_nothing(
    mode: str, sequence: Sequence[Request], seed: int, held: int
) -> None:
    """Parts of one block are written while it is read, written back and forgotten."""
    asyncio.run(check_at_once(mode, sequence, seed, held))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@given(sequence=AT_ONCE[0], seed=AT_ONCE[1], held=AT_ONCE[2])
@settings(max_examples=1500)
def test_many_requests_at_once_lose_nothing(
    mode: str, sequence: Sequence[Request], seed: int, held: int
) -> None:
    """The same, for longer."""
    asyncio.run(check_at_once(mode, sequence, seed, held))


class Gated(Plain):
    """Its writes wait until they are let go."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.gate = asyncio.Event()

    async def write(self, offset: int, views: Views) -> None:  # type: ignore[override]
        """Take the data, and store it later."""
        data = b"".join(views)
        await self.gate.wait()
        super().write(offset, [memoryview(data)])


def test_what_is_written_while_it_is_written_back_is_not_lost() -> None:
    """A block that becomes another on its way to the disk below is dirty again behind that."""

    async def check() -> None:
        disk, model = Gated(BASE), bytearray(BASE)
        calls = await opened(Cache(disk, mode="writeback"))
        for fill in (1, 2):
            one = Request("write", 8, 8, fill)
            pending = [asyncio.ensure_future(ask(calls, one))]
            pending.append(asyncio.ensure_future(ask(calls, Request("flush"))))
            apply(model, one)
            for _ in range(3):
                await asyncio.sleep(0)
        disk.gate.set()
        await asyncio.gather(*pending)
        await run(calls.flush)
        assert disk.data == model
        await run(calls.close)

    asyncio.run(check())


@pytest.mark.parametrize("mode", MODES)
@given(
    steps=st.lists(
        st.tuples(st.integers(1, 2 * SECTORS), st.lists(requests(), max_size=4)), max_size=6
    )
)
@settings(max_examples=8)
def test_another_size(mode: str, steps: Sequence[tuple[int, Sequence[Request]]]) -> None:
    """What is cut off is forgotten, and what is added is what the disk below has there."""

    async def check() -> None:
        disk, model = Plain(BASE), bytearray(BASE)
        calls = await opened(small(disk, mode))
        for size, sequence in steps:
            await run(calls.resize, size * SECTOR)
            del model[size * SECTOR :]
            model.extend(bytes(size * SECTOR - len(model)))
            await compare(calls, model, [r for r in sequence if r.first + r.count <= size])
        await run(calls.close)
        assert disk.data == model

    asyncio.run(check())


def test_what_was_read_is_not_read_again() -> None:
    """Hits and misses are counted by blocks; a drop forgets all that is not dirty."""

    async def check() -> None:
        disk = Plain(BASE)
        cache = Cache(disk, mode="writeback")
        calls = await opened(cache)
        await ask(calls, Request("read", 0, 16))
        disk.data[:] = bytes(SIZE)
        assert await ask(calls, Request("read", 0, 16)) == BASE[: 16 * SECTOR]
        assert (cache.settings()["hits"], cache.settings()["misses"]) == (2, 2)
        await ask(calls, Request("write", 0, 8, 1))
        assert cache.settings()["dirty"] == 4096
        assert cache.drop() == {"bytes": 4096}
        assert cache.settings()["held"] == 4096
        assert await ask(calls, Request("read", 8, 8)) == bytes(4096)
        await run(calls.close)

    asyncio.run(check())


def test_a_drop_takes_nothing_from_a_write_under_way() -> None:
    """A write that has filled the block it begins in, and waits for the one it ends in."""

    async def check() -> None:
        disk, model = Late(BASE), bytearray(BASE)
        cache = Cache(disk, mode="writeback")
        calls = await opened(cache)
        write = Request("write", 7, 10, 1)
        task = asyncio.ensure_future(ask(calls, write))
        while not task.done():
            await asyncio.sleep(0)
            cache.drop()
        await task
        apply(model, write)
        assert await ask(calls, Request("read", 0, 24)) == model[: 24 * SECTOR]
        await run(calls.close)

    asyncio.run(check())


def test_a_size_that_is_set_holds() -> None:
    """What is too much goes with the next request; the size can be changed while it serves."""

    async def check() -> None:
        cache = Cache(Plain(bytes(8 << 20)), size=4 << 20)
        calls = await opened(cache)
        await run(calls.read, 0, [memoryview(bytearray(3 << 20))])
        assert cache.settings()["held"] == 3 << 20
        cache.change({"size": "1M"})
        await run(calls.read, 4 << 20, [memoryview(bytearray(4096))])
        assert cache.settings()["held"] == 1 << 20
        with pytest.raises(VhostBlkError, match="'mode' cannot be changed"):
            cache.change({"mode": "writeback"})
        await run(calls.close)

    asyncio.run(check())


def test_only_a_write_back_cache_is_volatile() -> None:
    """A disk that needs no flush does with such a cache, or the guest would send none."""

    async def check() -> None:
        for mode, volatile in (("writethrough", False), ("writeback", True)):
            disk = Plain(BASE, volatile=False)
            disk.writeback = False  # type: ignore[attr-defined]
            cache = Cache(disk, mode=mode)
            calls = await opened(cache)
            assert calls.info().volatile == volatile
            assert starts_writeback(cache) == volatile
            await run(calls.close)

    asyncio.run(check())


def test_dirty_blocks_are_no_holes() -> None:
    """The status of blocks is that of the disk below, but for what it has not got yet."""

    class Holes(Plain):
        def block_status(self, offset: int, length: int) -> Iterator[Extent]:
            """Say that nothing is stored."""
            yield Extent(offset, length, hole=True)

    async def check() -> None:
        calls = await opened(Cache(Holes(bytes(SIZE)), mode="writeback"))
        await ask(calls, Request("write", 8, 8, 1))
        found = [(e.offset, e.length, e.hole) for e in calls.block_status(0, SIZE)]
        assert found == [(0, 4096, True), (4096, 4096, False), (8192, SIZE - 8192, True)]
        await run(calls.close)

    asyncio.run(check())


def test_a_read_only_disk_stays_so() -> None:
    """A write-back cache takes no write that the disk below never will."""

    async def check() -> None:
        cache = Cache(Plain(BASE, read_only=True), mode="writeback")
        calls = await opened(cache)
        assert calls.info().read_only
        assert not calls.abilities().write
        await run(calls.close)

    asyncio.run(check())


def test_a_size_that_somebody_else_changes_is_heeded() -> None:
    """A disk that is longer by now is read to its end."""

    async def check() -> None:
        disk = Plain(BASE)
        calls = await opened(Cache(disk, mode="writeback"))
        await content(calls)
        await ask(calls, Request("write", SECTORS - 1, 1, 1))
        calls.info()
        disk.data.extend(b"z" * 10 * SECTOR)
        model = bytearray(disk.data)
        apply(model, Request("write", SECTORS - 1, 1, 1))
        found = await content(calls)
        assert found == model
        await run(calls.close)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mode": "none"}, "mode=none: write mode=writethrough or mode=writeback"),
        ({"size": "4K"}, "size=4096: write 1M or more"),
        ({"block": "5000"}, "block=5000: write a power of two from 512 to 1M"),
        ({"block": "2M"}, "from 512 to 1M"),
    ],
)
def test_bad_options_are_refused(options: dict[str, str], why: str) -> None:
    """In one line that says what to write."""
    with pytest.raises(VhostBlkError, match=why):
        build(Null(SIZE), options)
