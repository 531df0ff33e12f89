"""
A read-only disk that is a file on a web server, fetched range by range.

    vhostblk serve --socket-path /tmp/web.sock python:http_range:Web,url=http://localhost:8000/disk.img

Requests wait for the network side by side: the methods are async.  A connection that the server has
closed is made anew, once; what fails then is an I/O error in the guest.
"""

import asyncio
import contextlib
import errno
from collections.abc import Sequence
from urllib.parse import urlsplit

import vhostblk

CONNECTIONS = 4


class Web(vhostblk.Disk):
    """The file at *url*, which must be http and whose server must know ranges."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise vhostblk.VhostBlkError(f"{url}: write http://HOST[:PORT]/PATH")
        self.host, self.port = parts.hostname, parts.port or 80
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def open(self) -> None:
        """Ask how large the file is."""
        self.free = asyncio.Semaphore(CONNECTIONS)
        try:
            status, fields, _ = await self.ask("HEAD", "")
        except (OSError, EOFError, ValueError) as error:
            raise vhostblk.VhostBlkError(f"{self.host}:{self.port}: {error}") from error
        if status != 200 or "content-length" not in fields:
            raise vhostblk.VhostBlkError(f"{self.host}{self.path}: status {status}, no length")
        self.size = int(fields["content-length"]) // 512 * 512
        if not self.size:
            raise vhostblk.VhostBlkError(f"{self.host}{self.path}: has not even 512 bytes")

    async def close(self) -> None:
        """Hang up."""
        for _, writer in self.idle:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def info(self) -> vhostblk.DiskInfo:
        """Say that few large requests are better than many small ones."""
        return vhostblk.DiskInfo(size=self.size, optimal_io_size=1 << 18)

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fetch one range."""
        length = sum(map(len, views))
        header = f"Range: bytes={offset}-{offset + length - 1}\r\n"
        try:
            status, _, body = await self.ask("GET", header)
        except (EOFError, ValueError) as error:
            raise OSError(errno.EIO, f"the server's answer is none: {error}") from error
        if status != 206 or len(body) != length:
            raise OSError(errno.EIO, f"the server gave status {status} and {len(body)} bytes")
        at = 0
        for view in views:
            view[:] = body[at : at + len(view)]
            at += len(view)

    async def ask(self, method: str, header: str) -> tuple[int, dict[str, str], bytes]:
        """Ask on an idle connection, and if that was closed meanwhile on a new one."""
        async with self.free:
            if self.idle:
                connection = self.idle.pop()
                with contextlib.suppress(OSError, EOFError):
                    return await self.ask_on(*connection, method, header)
                connection[1].close()
            connection = await asyncio.open_connection(self.host, self.port)
            try:
                return await self.ask_on(*connection, method, header)
            except BaseException:
                connection[1].close()
                raise

    async def ask_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, header: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request, and take the answer: status, fields and body."""
        text = f"{method} {self.path} HTTP/1.1\r\nHost: {self.host}\r\n{header}\r\n"
        writer.write(text.encode("ascii"))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        named = (one.partition(":") for one in head)
        fields = {name.lower(): value.strip() for name, _, value in named}
        length = 0 if method == "HEAD" else int(fields.get("content-length", "0"))
        body = await reader.readexactly(length)
        if fields.get("connection", "").lower() == "close":
            writer.close()
        else:
            self.idle.append((reader, writer))
        return int(head[0].split(" ")[1]), fields, body
