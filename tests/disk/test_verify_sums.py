"""What becomes of checksums: when a server ends, a host crashes, or another process goes on."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from layer_kit.disks import SECTOR, Plain
from layer_kit.model import (
    BASE,
    SIZE,
    Request,
    ask,
    opened,
    refused,
)

from vhostblk.disk import carry, verify_sums
from vhostblk.disk.call import run
from vhostblk.disk.layer import take_apart
from vhostblk.disk.memfd import Memfd
from vhostblk.disk.verify import Verify
from vhostblk.errors import VhostBlkError


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
