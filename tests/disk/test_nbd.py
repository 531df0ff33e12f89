import asyncio
import re
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest
from nbd_servers import nbdkit

from vhostblk.disk import carry, nbd
from vhostblk.disk.layer import take_apart
from vhostblk.disk.make import make
from vhostblk.disk.nbd import Nbd
from vhostblk.errors import VhostBlkError


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name, for a socket."""
    with tempfile.TemporaryDirectory(prefix="nbd") as directory:
        yield Path(directory)


def with_disk(
    place: Path, check: Callable[[Nbd], Coroutine[object, object, None]], *arguments: str
) -> None:
    """Serve with nbdkit, and do *check* with the open disk."""

    async def run(text: str) -> None:
        disk = make(text)
        assert isinstance(disk, Nbd)
        await disk.open()
        try:
            await check(disk)
        finally:
            await disk.close()

    with nbdkit(place, *arguments) as server:
        asyncio.run(run(f"nbd:unix:{server.socket}"))


def test_info_is_what_the_server_says(place: Path) -> None:
    """Size, blocks and abilities."""

    async def check(disk: Nbd) -> None:
        info = disk.info()
        assert (info.size, info.block_size, info.physical_block_size) == (4 << 20, 1024, 4096)
        assert (info.read_only, info.volatile, info.may_unmap) == (False, True, True)
        assert info.max_discard
        assert info.max_write_zeroes

    blocks = ("blocksize-minimum=1024", "blocksize-preferred=4096", "blocksize-maximum=1M")
    with_disk(place, check, "--filter=blocksize-policy", "memory", "4M", *blocks)


def test_a_read_only_export_is_a_read_only_disk(place: Path) -> None:
    """It offers nothing that would change it."""

    async def check(disk: Nbd) -> None:
        info = disk.info()
        assert (info.read_only, info.max_discard, info.max_write_zeroes) == (True, 0, 0)
        data = bytearray(b"x" * 512)
        await disk.read(0, [memoryview(data)])
        assert data == bytes(512)

    with_disk(place, check, "-r", "memory", "1M")


@pytest.mark.parametrize(
    ("mode", "written"),
    [(["fuamode=native"], ["Write fua=1"]), ([], ["Write fua=0", "Flush"])],
    ids=["fua", "none"],
)
def test_a_stable_write_is_one_for_the_server(
    place: Path, mode: list[str], written: list[str]
) -> None:
    """As a flag of the write where the server takes it, else by a flush behind it."""

    async def check(disk: Nbd) -> None:
        await disk.write(0, [memoryview(b"x" * 512)], fua=True)

    filters = ("--filter=log", "--filter=fua", "memory", "1M", *mode)
    with_disk(place, check, *filters, f"logfile={place}/log")
    text = (place / "log").read_text()
    seen = re.findall(r"connection=\d+ (Write|Flush) id=\d+(.*?) ?\.\.\.", text)
    flags = [re.search(r"fua=\d", rest) for _, rest in seen]
    assert [
        " ".join((name, flag[0]) if flag else (name,))
        for (name, _), flag in zip(seen, flags, strict=True)
    ] == written


def test_what_is_kept_for_another_server_has_a_bound(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more the disk flushes by itself, and keeps none."""
    monkeypatch.setattr(nbd, "MOST_UNSTABLE", 10_000)

    async def check(disk: Nbd) -> None:
        for at in range(5):
            await disk.write(at * 4096, [memoryview(bytes(4096))])

    with_disk(place, check, "--filter=log", "memory", "1M", f"logfile={place}/log")
    seen = re.findall(r"connection=\d+ (Write|Flush) id", (place / "log").read_text())
    assert seen == ["Write", "Write", "Flush", "Write", "Write", "Flush", "Write"]


def test_a_write_that_was_given_up_ends_with_the_servers_answer(place: Path) -> None:
    """Until then it may still be done; a read ends at once."""

    async def check(disk: Nbd) -> None:
        writing = asyncio.create_task(disk.write(0, [memoryview(b"x" * 512)]))
        reading = asyncio.create_task(disk.read(0, [memoryview(bytearray(512))]))
        await asyncio.sleep(0)
        for task in (writing, reading):
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not writing.done()
        with pytest.raises(asyncio.CancelledError):
            await writing
        data = bytearray(512)
        await disk.read(0, [memoryview(data)])
        assert data == b"x" * 512

    delays = ("delay-write=50ms", "delay-read=20ms")
    with_disk(place, check, "--filter=delay", "memory", "1M", *delays)


def test_the_next_process_connects_anew(place: Path) -> None:
    """Behind the end of this one: never are there two connections that both write."""

    async def check(disk: Nbd) -> None:
        stack = take_apart(disk)
        assert carry.shared(stack) is None
        await carry.restore(stack, data=await carry.save(stack))

    with_disk(place, check, "memory", "1M")


def test_what_cannot_be_a_disk_is_not_opened(place: Path) -> None:
    """Too large blocks, half a sector, no such export: one line each."""

    async def check(_: Nbd) -> None:
        raise AssertionError("open")

    huge = ("blocksize-minimum=65536", "blocksize-preferred=65536", "blocksize-maximum=65536")
    for message, *arguments in (
        ("wants blocks of 65536 bytes", "--filter=blocksize-policy", "memory", "1M", *huge),
        ("has 512 bytes or a multiple of that, not 1000", "memory", "1000"),
        (
            "No such file|export",
            "--filter=exportname",
            "memory",
            "1M",
            "exportname=a",
            "exportname-strict=true",
        ),
    ):
        with pytest.raises(VhostBlkError, match=message):
            with_disk(place, check, *arguments)


def test_a_server_with_a_key_is_asked_over_tls(place: Path) -> None:
    """The key's file is named in the URI; without it there is no disk."""
    (place / "keys").write_text(f"alice:{'5a' * 32}\n")
    (place / "keys").chmod(0o600)

    async def check(text: str) -> None:
        disk = make(text)
        assert isinstance(disk, Nbd)
        await disk.open()
        await disk.write(512, [memoryview(b"t" * 512)])
        data = bytearray(1024)
        await disk.read(0, [memoryview(data)])
        await disk.close()
        assert data == bytes(512) + b"t" * 512

    with nbdkit(place, "--tls=require", f"--tls-psk={place}/keys", "memory", "1M") as server:
        asyncio.run(check(f"nbds+unix://alice@/?socket={server.socket}&tls-psk-file={place}/keys"))
        with pytest.raises(VhostBlkError):
            asyncio.run(check(f"nbd:unix:{server.socket}"))
