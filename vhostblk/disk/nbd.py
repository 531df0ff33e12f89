"""
A disk on an NBD server.

One connection for all queues, so that a flush covers what any of them has written whatever the
server says of several.  Commands go out as requests come, and answers come in any order.  Data is
copied once, between guest memory and a buffer of the command's own: a command takes one buffer
where a request has many pieces, it can be sent again, and one that was given up writes nowhere.

A connection that is lost is made anew in the background; requests are held meanwhile, and those
that had no answer are sent again, up to a time.  Before them goes whatever has changed since the
last flush: the server may have lost it.
"""

import asyncio
import errno
import logging
from collections.abc import Sequence
from ctypes import addressof, c_char
from dataclasses import dataclass
from threading import Event

from vhostblk.disk import libnbd
from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.nbd_link import Link, LostError
from vhostblk.disk.nbd_unstable import Send, Unstable
from vhostblk.disk.nbd_where import Where
from vhostblk.errors import VhostBlkError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
"""How long one attempt to connect may take."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 2.0
"""Seconds between attempts: twice as long each time."""
MOST_UNSTABLE = 32 << 20
"""Bytes that are kept for the next server; with more the disk flushes by itself."""
_SECTOR = 512
_LARGEST_BLOCK = 4096  # a Linux guest refuses blocks larger than its pages
_LONGEST = 32 << 20  # what a server takes that does not say (NBD protocol, "Block sizes")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Export:
    """What a server says of an export; sizes in bytes, 0 where it does not say."""

    size: int
    read_only: bool
    minimum: int
    preferred: int
    maximum: int
    flush: bool
    fua: bool
    trim: bool
    zero: bool


class Nbd(Disk):
    """
    An export of an NBD server.

    Args:
        where: The server.
        timeout: Seconds a request is held at most while the server is gone.
    """

    def __init__(self, where: Where, *, timeout: float = 30.0) -> None:
        self._where = where
        self._timeout = timeout
        self._export: _Export | None = None
        self._link: Link | None = None
        self._back = asyncio.Event()
        self._lost_at = 0.0
        self._called_off = Event()
        self._again: asyncio.Task[None] | None = None
        self._unstable = Unstable()
        self._emptying = asyncio.Lock()

    # ---- life --------------------------------------------------------------------------------

    async def open(self) -> None:
        """
        Connect, and see what there is.

        Raises:
            VhostBlkError: No server, no such export, or one that cannot be a disk.
        """
        self._called_off, self._back = Event(), asyncio.Event()
        self._unstable, self._emptying = Unstable(), asyncio.Lock()
        try:
            handle = await self._connect()
        except OSError as error:
            raise VhostBlkError(f"{self._where.text}: {error.strerror}") from error
        export = _look(handle)
        try:
            _check(self._where.text, export)
        except VhostBlkError:
            handle.close()
            raise
        self._export = export
        self._link = Link(handle, self._lose)
        self._back.set()

    async def close(self) -> None:
        """Hang up; whatever is under way ends."""
        self._called_off.set()
        if self._again is not None:
            self._again.cancel()
            await asyncio.wait([self._again])
        if self._link is not None:
            self._link.close()
            self._link = None
        self._back.set()

    def save(self) -> bytes:
        """Have nothing in memory that the next process would need: it connects anew."""
        return b""

    def restore(self, data: bytes) -> None:
        """Need nothing of another process."""

    def info(self) -> DiskInfo:
        """Return what the server has said."""
        export = self._known()
        block = max(_SECTOR, export.minimum)
        preferred = export.preferred if _is_block(export.preferred, block) else 0
        return DiskInfo(
            size=export.size,
            block_size=block,
            physical_block_size=preferred,
            read_only=export.read_only,
            volatile=export.flush,
            max_discard=1 << 30 if export.trim else 0,
            max_write_zeroes=1 << 30 if export.zero else 0,
            may_unmap=export.zero,
        )

    # ---- requests ----------------------------------------------------------------------------

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Read into a buffer, and copy it once it is complete."""
        length = sum(map(len, views))
        buffer = bytearray(length)
        memory = (c_char * length).from_buffer(buffer)

        for at, part in self._parts(length):

            def send(link: Link, at: int = at, part: int = part) -> asyncio.Future[None]:
                to = addressof(memory) + at
                return link.ask("aio_pread", to, part, offset + at, libnbd.NOBODY, 0, keep=memory)

            await self._do(send, changes=False)
        at = 0
        with memoryview(buffer) as data:
            for view in views:
                view[:] = data[at : at + len(view)]
                at += len(view)

    async def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> None:
        """Copy, and write the copy; a flush stands in for FUA where the server has none."""
        data = b"".join(views)
        flags = libnbd.FLAG_FUA if fua and self._known().fua else 0
        for at, part in self._parts(len(data)):
            piece = data[at : at + part]

            def send(link: Link, at: int = at, piece: bytes = piece) -> asyncio.Future[None]:
                size = len(piece)
                return link.ask(
                    "aio_pwrite", piece, size, offset + at, libnbd.NOBODY, flags, keep=piece
                )

            await self._change(send, len(piece))
        if fua and not flags:
            await self.flush()

    async def flush(self) -> None:
        """Have the server make stable what it has."""
        if not self._known().flush:
            return
        covered = 0

        def send(link: Link) -> asyncio.Future[None]:
            nonlocal covered
            covered = self._unstable.last
            return link.ask("aio_flush", libnbd.NOBODY, 0)

        await self._do(send, changes=False)
        self._unstable.stable(covered)

    async def discard(self, offset: int, length: int) -> None:
        """Have the server forget a range."""
        await self._change(lambda link: link.ask("aio_trim", length, offset, libnbd.NOBODY, 0))

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Have the server write zeroes itself."""
        flags = 0 if unmap else libnbd.FLAG_NO_HOLE
        await self._change(lambda link: link.ask("aio_zero", length, offset, libnbd.NOBODY, flags))

    async def _change(self, send: Send, length: int = 0) -> None:
        """Send what changes the disk, with *length* bytes of data."""
        await self._do(send, changes=True, length=length)
        async with self._emptying:  # who comes meanwhile waits: there is no end to memory else
            if self._unstable.cost > MOST_UNSTABLE:
                await self.flush()

    def _parts(self, length: int) -> list[tuple[int, int]]:
        """Cut what is longer than the server takes at once: offset and length of each part."""
        most = min(self._known().maximum or _LONGEST, _LONGEST) // _SECTOR * _SECTOR
        return [(at, min(most, length - at)) for at in range(0, length, most)]

    async def _do(self, send: Send, *, changes: bool, length: int = 0) -> None:
        """Send a command, again whenever the connection was lost, until there is an answer."""
        until = self._lost_at + self._timeout if self._link is None else None
        while True:
            link = await self._linked(until)
            try:
                future = send(link)
                try:
                    await _answer(future, changes=changes)
                finally:  # of one that was given up, too
                    if changes and self._known().flush and _is_done_well(future):
                        self._unstable.add(send, length)
            except LostError:
                until = until or asyncio.get_running_loop().time() + self._timeout
            else:
                return

    async def _linked(self, until: float | None) -> Link:
        """Return the connection, when there is one; raises EIO where there is none in time."""
        left = None if until is None else until - asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(self._back.wait(), left)
        except TimeoutError:
            raise OSError(errno.EIO, "the NBD server is gone") from None
        if self._link is None:
            raise OSError(errno.ESHUTDOWN, "the disk is closed")
        return self._link

    # ---- connections -------------------------------------------------------------------------

    async def _connect(self) -> libnbd.Handle:
        off = self._called_off
        connecting = asyncio.ensure_future(
            asyncio.to_thread(self._where.connect, CONNECT_SECONDS, off)
        )
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            off.set()
            connecting.add_done_callback(_hang_up)
            raise

    def _lose(self) -> None:
        if self._link is None:  # it was not in use yet
            return
        self._link = None
        self._back.clear()
        self._lost_at = asyncio.get_running_loop().time()
        log.warning(
            "%s: the server is gone: requests wait for it, %g s at most",
            self._where.text,
            self._timeout,
        )
        self._again = asyncio.create_task(self._reconnect())

    async def _reconnect(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            try:
                if await self._is_back():
                    return
            except OSError as error:
                log.info("%s: not yet: %s", self._where.text, error.strerror)

    async def _is_back(self) -> bool:
        """Connect once more; raises OSError where there is no server."""
        handle = await self._connect()
        try:
            same = _look(handle) == self._export
            link = Link(handle, self._lose) if same else None
        except OSError:  # it is gone already
            handle.close()
            raise
        if link is None:
            log.error("%s: another disk is there now: it is not used", self._where.text)
            handle.close()
            return False
        try:
            await self._unstable.replay(link)
        except LostError:
            raise OSError(errno.ENOTCONN, "lost again") from None
        except BaseException:
            link.close()
            raise
        self._link = link
        self._back.set()
        log.warning("%s: the server is back", self._where.text)
        return True

    def _known(self) -> _Export:
        if self._export is None:
            raise VhostBlkError(f"{self._where.text}: not open")
        return self._export


async def _answer(future: asyncio.Future[None], *, changes: bool) -> None:
    """
    Wait for the end of a command.

    One that changes the disk and was given up is not over before the server has said so: until
    then it may still be done, and another write to the same place must not come first.
    """
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            if not changes:
                future.add_done_callback(_forget)
                raise
            cancelled = True
    if cancelled:
        _forget(future)
        raise asyncio.CancelledError
    future.result()


def _is_done_well(future: asyncio.Future[None]) -> bool:
    return future.done() and future.exception() is None


def _forget(future: asyncio.Future[None]) -> None:
    future.exception()


def _hang_up(connecting: asyncio.Future[libnbd.Handle]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


def _look(handle: libnbd.Handle) -> _Export:
    def size(kind: int) -> int:
        return handle.call("get_block_size", kind)

    return _Export(
        size=handle.call("get_size"),
        read_only=bool(handle.call("is_read_only")),
        minimum=size(libnbd.SIZE_MINIMUM),
        preferred=size(libnbd.SIZE_PREFERRED),
        maximum=size(libnbd.SIZE_MAXIMUM),
        flush=bool(handle.call("can_flush")),
        fua=bool(handle.call("can_fua")),
        trim=bool(handle.call("can_trim")),
        zero=bool(handle.call("can_zero")),
    )


def _check(text: str, export: _Export) -> None:
    block = max(_SECTOR, export.minimum)
    if block > _LARGEST_BLOCK:
        raise VhostBlkError(
            f"{text}: the server wants blocks of {block} bytes, guests have {_LARGEST_BLOCK} "
            "at most: put a filter in front of it, e.g. nbdkit's blocksize"
        )
    if not export.size or export.size % block:
        raise VhostBlkError(
            f"{text}: a disk has {block} bytes or a multiple of that, not {export.size}"
        )


def _is_block(size: int, least: int) -> bool:
    return size >= least and size & (size - 1) == 0
