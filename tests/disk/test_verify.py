"""What a layer finds out about a disk that does not keep what it was given."""

import asyncio
import errno
import logging
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_kit.disks import SECTOR, Below, Late, Plain, Views
from layer_kit.model import (
    BASE,
    SIZE,
    Request,
    ask,
    at_once,
    compare,
    content,
    opened,
    refused,
    requests,
)

from vhostblk.disk import verify_sums
from vhostblk.disk.call import run
from vhostblk.disk.null import Null
from vhostblk.disk.verify import LINES, Verify, build
from vhostblk.errors import VhostBlkError


class Faulty(Plain):
    """Does one thing wrong, once it is told what."""

    def __init__(self, fault: str = "") -> None:
        super().__init__(BASE)
        self.fault = fault
        self.old = bytes(BASE)

    def write(self, offset: int, views: Views) -> None:
        """Write, or what the fault makes of it."""
        data = b"".join(views)
        match self.fault:
            case "lose":
                return
            case "tear":
                data = data[: len(data) // 2]
            case "misplace":
                offset += 8 * SECTOR
        super().write(offset, [memoryview(data)])

    def read(self, offset: int, views: Views) -> None:
        """Read, or what was there once."""
        if self.fault != "stale":
            super().read(offset, views)
            return
        for view in views:
            view[:] = self.old[offset : offset + len(view)]
            offset += len(view)


@pytest.mark.parametrize("below", [Plain, Late])
@given(sequence=st.lists(requests(), max_size=25))
@settings(max_examples=20)
def test_a_good_disk_is_left_as_it_is(below: Below, sequence: Sequence[Request]) -> None:
    """Nothing is found, then or by a scrub, and all bytes are those below."""

    async def check() -> None:
        disk = below(BASE)
        verify = Verify(disk)
        calls = await opened(verify)
        await compare(calls, bytearray(BASE), sequence)
        assert await content(calls) == disk.data
        assert (await verify.scrub())["mismatches"] == 0
        await run(calls.close)

    asyncio.run(check())


async def check_race(sequence: Sequence[Request], seed: int) -> None:
    """Carry requests out together, whatever they overlap."""
    verify = Verify(Late(BASE, seed))
    calls = await opened(verify)
    await at_once(calls, sequence)
    await verify.scrub()
    assert verify.settings()["mismatches"] == 0
    await run(calls.close)


RACE = st.lists(requests(24), max_size=30)


@given(sequence=RACE, seed=st.integers(0, 99))
@settings(max_examples=25)
def test_requests_that_race_raise_no_alarm(sequence: Sequence[Request], seed: int) -> None:
    """A guest may read and write one block at once; either is right, and nothing is said."""
    asyncio.run(check_race(sequence, seed))


@pytest.mark.slow
@given(sequence=RACE, seed=st.integers(0, 99))
@settings(max_examples=1500)
def test_many_requests_that_race_raise_no_alarm(sequence: Sequence[Request], seed: int) -> None:
    """The same, for longer."""
    asyncio.run(check_race(sequence, seed))


class Restless(Plain):
    """A guest changes its buffer while the disk looks at it."""

    buffer = bytearray(b"a" * SECTOR)

    def write(self, offset: int, views: Views) -> None:
        """Write what is there by now."""
        self.buffer[:] = b"b" * SECTOR
        super().write(offset, views)


def test_a_buffer_that_changes_raises_no_alarm() -> None:
    """What is written is a copy, and the same bytes as were looked at."""

    async def check() -> None:
        disk = Restless(BASE)
        calls = await opened(Verify(disk))
        await run(calls.write, 0, [memoryview(disk.buffer).toreadonly()])
        assert await ask(calls, Request("read", 0)) == b"a" * SECTOR
        await run(calls.close)

    asyncio.run(check())


FAULTS = {
    "lose": ("the last write is lost: this is what was there before it", range(16, 24)),
    "tear": ("the last write is lost: this is what was there before it", range(20, 24)),
    "misplace": ("it is what belongs at", range(16, 32)),
    "stale": ("it is nothing that is known: torn, overwritten, or very old", range(16, 24)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_the_next_read(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """It fails with EIO, and a line for each block names it, both checksums, and what it is."""

    async def check() -> None:
        disk = Faulty()
        verify = Verify(disk)
        calls = await opened(verify)
        await ask(calls, Request("write", 0, 40, 1))
        disk.old = bytes(disk.data)
        await ask(calls, Request("write", 16, 8, 2))
        disk.fault = fault
        await ask(calls, Request("write", 16, 8, 3))
        disk.fault = fault if fault == "stale" else ""
        why, wrong = FAULTS[fault]
        assert [i for i in range(16, 32) if await refused(calls, Request("read", i))] == list(wrong)
        assert verify.settings()["mismatches"] == len(wrong)
        assert await refused(calls, Request("read", 10, 20))
        assert not await refused(calls, Request("read", 0, 16))
        expected = verify_sums.checksum(Request("write", 16, 8, 3).data()[-SECTOR:])
        text = f"512 bytes at {23 * SECTOR}: expected checksum {expected:08x}, seen"
        assert text in caplog.text
        assert why in caplog.text
        await run(calls.close)

    asyncio.run(check())


def test_a_warning_leaves_the_read_alone(caplog: pytest.LogCaptureFixture) -> None:
    """With on-mismatch=warn the guest has what is there; it can be set while it serves."""

    async def check() -> None:
        disk = Faulty("lose")
        verify = Verify(disk, on_mismatch="warn")
        calls = await opened(verify)
        await ask(calls, Request("write", 3, 1, 7))
        assert await ask(calls, Request("read", 3)) == BASE[3 * SECTOR : 4 * SECTOR]
        assert "verify: 512 bytes at 1536" in caplog.text
        verify.change({"on-mismatch": "error"})
        assert await refused(calls, Request("read", 3))
        with pytest.raises(VhostBlkError, match="'file' cannot be changed"):
            verify.change({"file": "x"})
        await run(calls.close)

    asyncio.run(check())


def test_zeroes_are_remembered_and_named() -> None:
    """Zeroes that become something else are found; what was discarded may be anything."""

    async def check() -> None:
        disk = Plain(BASE)
        calls = await opened(Verify(disk))
        await ask(calls, Request("write_zeroes", 0, 8))
        await ask(calls, Request("write", 8, 8, 5))
        await ask(calls, Request("discard", 8, 8))
        disk.write(0, [memoryview(b"x" * SECTOR)])
        disk.write(8 * SECTOR, [memoryview(b"x" * SECTOR)])
        assert await refused(calls, Request("read", 0, 8))
        assert not await refused(calls, Request("read", 8, 8))
        await run(calls.close)

    asyncio.run(check())


def test_a_scrub_counts_what_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    """It reads all that is known, and tells how much of it is something else; lines are limited."""

    class Broken(Faulty):
        def read(self, offset: int, views: Views) -> None:  # noqa: ARG002
            """Fail."""
            raise OSError(errno.EIO, "no medium")

    async def check() -> None:
        disk = Faulty("lose")
        verify = Verify(disk)
        calls = await opened(verify)
        await ask(calls, Request("write", 0, 100, 1))
        disk.fault = ""
        await ask(calls, Request("write", 0, 50, 1))
        assert await verify.scrub() == {"checked": 100, "mismatches": 50, "unreadable": 0}
        assert sum("expected checksum" in r.getMessage() for r in caplog.records) == LINES
        assert "what follows is only counted" in caplog.text
        verify.forget()
        assert await verify.scrub() == {"checked": 0, "mismatches": 0, "unreadable": 0}
        await ask(calls, Request("write", 0, 1, 1))
        disk.__class__ = Broken
        assert (await verify.scrub())["unreadable"] == SIZE
        await run(calls.close)

    caplog.set_level(logging.INFO)
    asyncio.run(check())


def test_a_write_that_fails_may_have_done_anything() -> None:
    """Nobody knows what is there, so nothing is said of it."""

    class Failing(Plain):
        def write(self, offset: int, views: Views) -> None:
            """Fail in the middle."""
            super().write(offset, [views[0][: SECTOR // 2]])
            raise OSError(errno.EIO, "broken")

    async def check() -> None:
        disk = Plain(BASE)
        calls = await opened(Verify(disk))
        await ask(calls, Request("write", 0, 2, 1))
        disk.__class__ = Failing
        assert await refused(calls, Request("write", 0, 1, 2))
        assert not await refused(calls, Request("read", 0, 2))
        await run(calls.close)

    asyncio.run(check())


class Shared(Plain):
    """Locked while rings run."""

    lock_while_running = True

    def lock(self) -> None:
        """Take it."""

    def unlock(self) -> None:
        """Leave it."""


def test_what_others_have_changed_raises_no_alarm() -> None:
    """A disk that was unlocked is nobody's: behind the next lock nothing is known of it."""

    async def check() -> None:
        disk = Shared(BASE)
        calls = await opened(Verify(disk))
        await run(calls.lock)
        await ask(calls, Request("write", 0, 1, 1))
        await run(calls.unlock)
        disk.write(0, [memoryview(b"x" * SECTOR)])
        await run(calls.lock)
        assert not await refused(calls, Request("read", 0))
        await run(calls.close)

    asyncio.run(check())


def test_a_bad_answer_is_refused() -> None:
    """In one line that says what to write."""
    with pytest.raises(VhostBlkError, match="write on-mismatch=error or on-mismatch=warn"):
        build(Null(SIZE), {"on-mismatch": "panic"})
