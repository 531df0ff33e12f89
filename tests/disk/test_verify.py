"""What a layer finds out about a disk that does not keep what it was given."""

import asyncio
import errno
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_kit.disks import SECTOR, Late, Plain
from layer_kit.model import BASE, SIZE, Request, ask, at_once, compare, content, requests

from vhostblk.disk import carry, verify_sums
from vhostblk.disk.call import Calls, run
from vhostblk.disk.layer import take_apart
from vhostblk.disk.memfd import Memfd
from vhostblk.disk.null import Null
from vhostblk.disk.verify import LINES, Verify, build
from vhostblk.errors import VhostBlkError

Below = Callable[[bytes], Plain | Late]
Views = Sequence[memoryview]


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


async def opened(disk: Verify) -> Calls:
    """Open one and return its calls."""
    calls = Calls(disk)
    await run(calls.open)
    return calls


async def refused(calls: Calls, request: Request) -> bool:
    """Tell whether a read fails as one that finds something else does."""
    try:
        await ask(calls, request)
    except OSError as error:
        return error.errno == errno.EIO
    return False


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
    """With on_mismatch=warn the guest has what is there; it can be set while it serves."""

    async def check() -> None:
        disk = Faulty("lose")
        verify = Verify(disk, on_mismatch="warn")
        calls = await opened(verify)
        await ask(calls, Request("write", 3, 1, 7))
        assert await ask(calls, Request("read", 3)) == BASE[3 * SECTOR : 4 * SECTOR]
        assert "verify: 512 bytes at 1536" in caplog.text
        verify.change({"on_mismatch": "error"})
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


def test_checksums_outlive_the_server(tmp_path: Path) -> None:
    """With a file what was written before a restart is compared behind it."""

    async def check() -> None:
        disk = Plain(BASE)
        calls = await opened(Verify(disk, file=tmp_path / "sums"))
        await ask(calls, Request("write", 0, 50, 1))
        await run(calls.close)
        disk.write(9 * SECTOR, [memoryview(b"x" * SECTOR)])
        verify = Verify(disk, file=tmp_path / "sums")
        calls = await opened(verify)
        assert await refused(calls, Request("read", 9))
        assert await verify.scrub() == {"checked": 50, "mismatches": 1, "unreadable": 0}
        await run(calls.close)
        with pytest.raises(VhostBlkError, match=f"are of {SIZE} bytes in blocks of 512"):
            await opened(Verify(Plain(BASE[SECTOR:]), file=tmp_path / "sums"))

    asyncio.run(check())


def test_a_kill_leaves_what_is_known_and_a_crash_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Of a killed process only what was being written is unknown.

    Of a crashed host nobody knows which of the last writes the drive has.
    """
    path, left = tmp_path / "sums", tmp_path / "left"

    async def check() -> None:
        disk = Plain(BASE)
        verify = Verify(disk, file=path)
        calls = await opened(verify)
        await ask(calls, Request("write", 0, 50, 1))
        verify._sums.begin(7, 8)
        left.write_bytes(path.read_bytes())
        await run(calls.close)
        again = Verify(disk, file=left)
        calls = await opened(again)
        assert (await again.scrub())["checked"] == 49
        left2 = tmp_path / "left2"
        left2.write_bytes(left.read_bytes())
        await run(calls.close)
        monkeypatch.setattr(verify_sums, "boot_id", lambda: bytes(16))
        after = Verify(disk, file=left2)
        calls = await opened(after)
        assert (await after.scrub())["checked"] == 0
        assert "the host has crashed since" in caplog.text
        await run(calls.close)

    asyncio.run(check())


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """A wrong name must not cost an image."""
    path = tmp_path / "image"
    path.write_bytes(BASE)
    with pytest.raises(VhostBlkError, match="has no checksums, and is left as it is"):
        asyncio.run(opened(Verify(Plain(BASE), file=path)))
    assert path.read_bytes() == BASE


def test_another_size_keeps_what_is_known() -> None:
    """What stays is compared as before; what is added nobody has written."""

    async def check() -> None:
        disk = Plain(BASE)
        verify = Verify(disk)
        calls = await opened(verify)
        await ask(calls, Request("write", 0, 100, 1))
        await run(calls.resize, 50 * SECTOR)
        await run(calls.resize, SIZE)
        assert await verify.scrub() == {"checked": 50, "mismatches": 0, "unreadable": 0}
        disk.write(0, [memoryview(b"x" * SECTOR)])
        assert await refused(calls, Request("read", 0))
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


@pytest.mark.parametrize("file", ["", "sums"])
def test_another_process_goes_on_with_it(tmp_path: Path, file: str) -> None:
    """What it knows is in the file, up to the last write; without one it begins anew."""

    async def check() -> None:
        path = tmp_path / file if file else ""
        old = Verify(Memfd(SIZE), file=path)
        calls = await opened(old)
        fds = carry.shared(take_apart(old))
        assert fds is not None
        new = Verify(Memfd(SIZE), file=path)
        await carry.adopt(take_apart(new), fds=[os.dup(fd) for fd in fds])
        successor = await opened(new)
        await ask(calls, Request("write", 0, 9, 1))
        await run(calls.close)
        await ask(successor, Request("read", 0, 9))
        assert (await new.scrub())["checked"] == (9 if file else 0)
        await run(successor.close)

    asyncio.run(check())


def test_one_that_does_not_take_over_leaves_the_file_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that crashes later was not left in order, whatever that process did at its end."""

    async def check() -> None:
        path, left = tmp_path / "sums", tmp_path / "left"
        old = Verify(Memfd(SIZE), file=path)
        calls = await opened(old)
        fds = [os.dup(fd) for fd in carry.shared(take_apart(old)) or ()]
        new = Verify(Memfd(SIZE), file=path)
        await carry.adopt(take_apart(new), fds=fds)
        await run((await opened(new)).close)
        await ask(calls, Request("write", 0, 9, 1))
        shutil.copy(path, left)
        await run(calls.close)
        monkeypatch.setattr(verify_sums, "boot_id", lambda: bytes(16))
        for file, known in ((left, 0), (path, 9)):
            again = Verify(Plain(Request("write", 0, 9, 1).data().ljust(SIZE, b"\0")), file=file)
            calls = await opened(again)
            assert (await again.scrub())["checked"] == known
            await run(calls.close)

    asyncio.run(check())


def test_new_code_knows_what_the_old_has_known() -> None:
    """When the layers are made anew, checksums and counts stay."""

    async def check() -> None:
        disk = Plain(BASE)
        old = Verify(disk)
        calls = await opened(old)
        await ask(calls, Request("write", 0, 9, 1))
        new = Verify(disk)
        successor = await opened(new)
        await run(successor.inherit, old)
        await run(calls.close)
        assert (await new.scrub())["checked"] == 9
        await run(successor.close)

    asyncio.run(check())


def test_a_bad_answer_is_refused() -> None:
    """In one line that says what to write."""
    with pytest.raises(VhostBlkError, match="write on_mismatch=error or on_mismatch=warn"):
        build(Null(SIZE), {"on_mismatch": "panic"})
