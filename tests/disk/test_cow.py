"""What is written in front of a disk, and is not in it."""

import asyncio
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_kit.disks import SECTOR, Below, Late, Plain
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

from vhostblk.disk import carry
from vhostblk.disk.call import run
from vhostblk.disk.cow import Cow, build
from vhostblk.disk.layer import take_apart
from vhostblk.disk.memfd import Memfd
from vhostblk.disk.null import Null
from vhostblk.disk.store import Store
from vhostblk.errors import VhostBlkError

BLOCK = 4096


@pytest.mark.parametrize("below", [Plain, Late])
@given(sequence=st.lists(requests(), max_size=25))
@settings(max_examples=25)
def test_a_cow_is_a_disk_and_leaves_the_one_below(
    below: Below, sequence: Sequence[Request]
) -> None:
    """It has what was written last, and what was never written from below, which stays."""

    async def check() -> None:
        disk = below(BASE)
        calls = await opened(Cow(disk, block=BLOCK))
        await compare(calls, bytearray(BASE), sequence)
        assert disk.data == BASE
        await run(calls.close)

    asyncio.run(check())


@given(sequence=st.lists(requests(), max_size=30), seed=st.integers(0, 99))
@settings(max_examples=12)
def test_parts_of_a_block_that_are_written_together_are_all_kept(
    sequence: Sequence[Request], seed: int
) -> None:
    """While the rest of a block is read below, others write to it, and none of it is lost."""

    async def check() -> None:
        calls = await opened(Cow(Late(BASE, seed), block=BLOCK))
        model, together = bytearray(BASE), apart(sequence)
        for one in together:
            apply(model, one)
        assert await at_once(calls, together) == model
        await run(calls.close)

    asyncio.run(check())


SIZES = st.integers(1, 2 * SECTORS)


@pytest.mark.parametrize("below", [Plain, Late])
@given(steps=st.lists(st.tuples(SIZES, st.lists(requests(), max_size=4)), max_size=6))
@settings(max_examples=12)
def test_another_size_is_kept_like_what_is_written(
    below: Below, steps: Sequence[tuple[int, Sequence[Request]]]
) -> None:
    """What was cut off never comes back, what is added is zeroes, and a commit moves the size."""

    async def check() -> None:
        disk = below(BASE)
        cow = Cow(disk, block=BLOCK)
        calls = await opened(cow)
        model = bytearray(BASE)
        for size, sequence in steps:
            await run(calls.resize, size * SECTOR)
            del model[size * SECTOR :]
            model.extend(bytes(size * SECTOR - len(model)))
            within = [one for one in sequence if one.first + one.count <= size]
            await compare(calls, model, within)
            assert disk.data == BASE
        await cow.commit()
        assert disk.data == model
        assert await content(calls) == model
        await run(calls.close)

    asyncio.run(check())


def test_a_read_only_disk_below_is_enough(tmp_path: Path) -> None:
    """The disk in front of it can be written; a commit says why it cannot be."""

    async def check() -> None:
        cow = Cow(Plain(BASE, read_only=True), scratch=tmp_path / "s")
        calls = await opened(cow)
        assert calls.abilities().write
        assert not calls.info().read_only
        await compare(calls, bytearray(BASE), [Request("write", 1, 1, 1)])
        with pytest.raises(VhostBlkError, match="read-only: nothing can be committed"):
            await cow.commit()
        await run(calls.close)

    asyncio.run(check())


def test_a_full_file_system_loses_nothing_it_has_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What could not be kept, or noted as kept, failed; what is written there later is there.

    Also where the process is killed then.
    """

    async def check() -> None:
        disk, model = Plain(BASE), bytearray(BASE)
        calls = await opened(Cow(disk, scratch=tmp_path / "s", block=BLOCK))
        whole = Store.write
        for left in (0, 1):
            writes = iter(range(9))

            def full(
                store: Store, offset: int, views: Sequence[memoryview], left: int = left
            ) -> None:
                if next(writes) >= left:  # noqa: B023 - called at once
                    raise OSError(errno.ENOSPC, "full")
                whole(store, offset, views)

            monkeypatch.setattr(Store, "write", full)
            with pytest.raises(OSError, match="full"):
                await ask(calls, Request("write", 8, 8, 1))
            monkeypatch.setattr(Store, "write", whole)
        await compare(calls, model, [Request("write", 9, 1, 2)])
        shutil.copy(tmp_path / "s", tmp_path / "left")
        again = await opened(Cow(disk, scratch=tmp_path / "left"))
        assert await content(again) == model
        await run(again.close)
        await run(calls.close)

    asyncio.run(check())


def test_a_flush_that_failed_never_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel forgets what it could not write, so nobody can say any more what is stable."""

    async def check() -> None:
        calls = await opened(Cow(Plain(BASE), scratch=tmp_path / "s"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", _fail)
            with pytest.raises(OSError, match="no medium"):
                await run(calls.flush)
        with pytest.raises(OSError, match="no medium, before"):
            await run(calls.flush)
        await run(calls.close)

    asyncio.run(check())


def _fail(_: int) -> None:
    raise OSError(errno.EIO, "no medium")


def test_holes_are_kept_as_holes(tmp_path: Path) -> None:
    """What is discarded takes no room, and the status of blocks says so."""

    async def check() -> None:
        size = 4 << 20
        cow = Cow(Plain(b"x" * size), scratch=tmp_path / "s")
        calls = await opened(cow)
        await run(calls.write, 0, [memoryview(b"y" * (1 << 20))])
        await run(calls.discard, 1 << 20, 2 << 20)
        found = [(e.offset, e.length, e.hole) for e in calls.block_status(0, size)]
        assert found == [
            (0, 1 << 20, False),
            (1 << 20, 2 << 20, True),
            (3 << 20, 1 << 20, False),
        ]
        assert (tmp_path / "s").stat().st_blocks * 512 < 2 << 20
        await run(calls.discard, 0, 1 << 20)
        assert (tmp_path / "s").stat().st_blocks * 512 < 1 << 20
        await run(calls.close)

    asyncio.run(check())


@pytest.mark.parametrize("scratch", ["", "s"])
def test_another_process_goes_on_with_it(tmp_path: Path, scratch: str) -> None:
    """
    Descriptors carry it over: what was written behind the new one's start is there, too.

    Both have it open for a moment; the old one writes to the last, and then no more.
    """

    async def check() -> None:
        path = tmp_path / scratch if scratch else ""
        below = Memfd(SIZE)
        old = Cow(below, scratch=path, block=BLOCK)
        calls, model = await opened(old), bytearray(SIZE)
        await compare(calls, model, [Request("write", 5, 9, 1)])
        fds = carry.shared(take_apart(old))
        assert fds is not None
        new = Cow(Memfd(SIZE), scratch=path)
        await carry.adopt(take_apart(new), fds=[os.dup(fd) for fd in fds])
        successor = await opened(new)
        successor.info()
        await compare(calls, model, [Request("write", 50, 9, 2), Request("discard", 5, 2)])
        await run(calls.close)
        assert await content(successor) == model
        await compare(successor, model, [Request("fua", 90, 1, 3), Request("write", 6, 1, 4)])
        await run(successor.close)

    asyncio.run(check())


def test_one_that_is_about_to_take_over_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the other process has said its last, the file is that one's."""

    async def check() -> None:
        old = Cow(Memfd(SIZE), scratch=tmp_path / "s", block=BLOCK)
        calls = await opened(old)
        await ask(calls, Request("write", 5, 9, 1))
        fds = [os.dup(fd) for fd in carry.shared(take_apart(old)) or ()]
        monkeypatch.setattr(Store, "write", None)
        monkeypatch.setattr(Store, "zero", None)
        new = Cow(Memfd(SIZE), scratch=tmp_path / "s")
        await carry.adopt(take_apart(new), fds=fds)
        successor = await opened(new)
        assert successor.info().size == SIZE
        assert new.settings()["block"] == BLOCK
        await run(successor.close)
        await run(calls.close)

    asyncio.run(check())


def test_new_code_takes_over_what_is_in_memory() -> None:
    """When the layers are made anew, what was written stays."""

    async def check() -> None:
        disk, model = Plain(BASE), bytearray(BASE)
        old = Cow(disk, block=BLOCK)
        calls = await opened(old)
        await compare(calls, model, [Request("write", 5, 9, 1)])
        new = Cow(disk)
        successor = await opened(new)
        await run(successor.inherit, old)
        await run(calls.close)
        assert await content(successor) == model
        await run(successor.close)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"block": "5000"}, "block=5000: write a power of two from 4K to 16M"),
        ({"block": "0"}, "block=0: write a power of two"),
        ({"block": "64M"}, "from 4K to 16M"),
    ],
)
def test_a_bad_block_is_refused(options: dict[str, str], why: str) -> None:
    """In one line that says what to write."""
    with pytest.raises(VhostBlkError, match=why):
        build(Null(SIZE), options)


def test_a_disk_that_others_may_use_is_refused() -> None:
    """A guest that moves to another host would leave behind what is kept here."""

    class Shared(Plain):
        lock_while_running = True

    with pytest.raises(VhostBlkError, match="would not move with the guest"):
        asyncio.run(opened(Cow(Shared(BASE))))
