import asyncio
import tempfile
from collections.abc import Iterator
from ctypes import addressof, c_char
from pathlib import Path
from threading import Event

import pytest
from nbd_servers import NbdServer, nbdkit

from vhostblk.disk import libnbd
from vhostblk.disk.nbd_link import Link, LostError
from vhostblk.disk.nbd_where import where


@pytest.fixture
def server() -> Iterator[NbdServer]:
    """A server whose reads take longer than any test."""
    with (
        tempfile.TemporaryDirectory(prefix="nbd") as directory,
        nbdkit(Path(directory), "--filter=delay", "memory", "1M", "rdelay=60") as running,
    ):
        yield running


def connect(server: NbdServer, lost: list[str]) -> Link:
    handle = where("nbd", f"unix:{server.socket}", {}).connect(10.0, Event())
    return Link(handle, lambda: lost.append("lost"))


def read(link: Link) -> "asyncio.Future[None]":
    memory = (c_char * 512)()
    return link.ask("aio_pread", addressof(memory), 512, 0, libnbd.NOBODY, 0, keep=memory)


def test_commands_end_in_any_order(server: NbdServer) -> None:
    """A write does not wait for the read before it; closing loses that, and tells nobody."""

    async def check() -> None:
        lost: list[str] = []
        link = connect(server, lost)
        slow = read(link)
        data = bytes(512)
        await link.ask("aio_pwrite", data, 512, 0, libnbd.NOBODY, 0, keep=data)
        assert not slow.done()
        link.close()
        with pytest.raises(LostError):
            await slow
        with pytest.raises(LostError):
            read(link)
        link.close()  # again is harmless
        assert lost == []

    asyncio.run(check())


def test_what_is_under_way_is_lost_with_the_server(server: NbdServer) -> None:
    """All of it, and that it is lost is told once."""

    async def check() -> None:
        lost: list[str] = []
        link = connect(server, lost)
        reads = [read(link) for _ in range(4)]
        server.kill()
        ends = await asyncio.gather(*reads, return_exceptions=True)
        assert [type(end) for end in ends] == [LostError] * 4
        assert lost == ["lost"]

    asyncio.run(check())


def test_what_the_library_will_not_send_is_an_error(server: NbdServer) -> None:
    """A range beyond the end never reaches the server, and the connection stays."""

    async def check() -> None:
        lost: list[str] = []
        link = connect(server, lost)
        with pytest.raises(OSError, match="nbd_aio_trim"):
            link.ask("aio_trim", 512, 1 << 40, libnbd.NOBODY, 0)
        await link.ask("aio_trim", 512, 0, libnbd.NOBODY, 0)
        link.close()
        assert lost == []

    asyncio.run(check())
