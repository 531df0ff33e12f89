"""
A read-only disk that is a file on a web server, fetched range by range.

    vhostblk serve --socket-path /tmp/web.sock python:http_range:Web,url=http://localhost:8000/disk.img

Requests wait for the network side by side: the methods are async.  A connection that the server has
closed is made anew, once; what fails then is an I/O error in the guest.  Python's own http.server
knows no ranges, and is refused; nginx, Apache and most others know them.
"""

import asyncio
import contextlib
import errno
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

import vhostblk

CONNECTIONS = 4
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Web(vhostblk.Disk):
    """The file at *url*, which must be http and whose server must know ranges."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise vhostblk.VhostBlkError(f"{url}: write http://HOST[:PORT]/PATH")
        self.host, self.port = parts.hostname, parts.port or 80
        self.name = parts.netloc.rpartition("@")[2]
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.size = 0
        self.idle: list[Connection] = []

    async def open(self) -> None:
        """Ask for the first sector: the answer says how large the file is."""
        self.free = asyncio.Semaphore(CONNECTIONS)
        try:
            await self.fetch(0, 512)
        except OSError as error:
            raise vhostblk.VhostBlkError(f"http://{self.name}{self.path}: {error}") from error

    async def close(self) -> None:
        """Hang up."""
        for _, writer in self.idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def info(self) -> vhostblk.DiskInfo:
        """Say that few large requests are better than many small ones."""
        return vhostblk.DiskInfo(size=self.size // 512 * 512, optimal_io_size=1 << 18)

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fetch one range."""
        body = await self.fetch(offset, sum(map(len, views)))
        at = 0
        for view in views:
            view[:] = body[at : at + len(view)]
            at += len(view)

    async def fetch(self, offset: int, length: int) -> bytes:
        """Ask on an idle connection, and if that was closed meanwhile on a new one."""
        async with self.free:
            try:
                if self.idle:
                    with contextlib.suppress(ConnectionError, EOFError):
                        return await self.fetch_on(self.idle.pop(), offset, length)
                new = await asyncio.open_connection(self.host, self.port)
                return await self.fetch_on(new, offset, length)
            except (EOFError, ValueError, asyncio.LimitOverrunError) as error:
                raise OSError(errno.EIO, f"the server's answer is none: {error}") from error

    async def fetch_on(self, connection: Connection, offset: int, length: int) -> bytes:
        """Keep only a connection whose answer was taken whole: its rest would answer the next."""
        reader, writer = connection
        ask = f"GET {self.path} HTTP/1.1\r\nHost: {self.name}\r\n"
        try:
            writer.write(
                f"{ask}Range: bytes={offset}-{offset + length - 1}\r\n\r\n".encode("ascii")
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            named = (one.partition(":") for one in head)
            fields = {name.lower(): value.strip() for name, _, value in named}
            self.check(head[0], fields, offset, length)
            body = await reader.readexactly(length)
        except BaseException:
            writer.close()
            raise
        if fields.get("connection", "").lower() == "close":
            writer.close()
        else:
            self.idle.append(connection)
        return body

    def check(self, status: str, fields: dict[str, str], offset: int, length: int) -> None:
        """See that these bytes come, of the same file, and nothing else."""
        if status.split(" ")[1:2] != ["206"]:
            raise OSError(errno.EIO, f"the server gave no range, but {status!r}")
        last = offset + length - 1
        said = fields.get("content-range", "")
        found = re.fullmatch(rf"bytes {offset}-{last}/(\d+)", said)
        if found is None or fields.get("content-length") != str(length):
            raise OSError(errno.EIO, f"bytes {offset}-{last} were asked for, and given: {said!r}")
        size = int(found[1])
        if self.size not in (0, size):
            raise OSError(errno.EIO, f"the file had {self.size} bytes, and has {size} now")
        self.size = size
