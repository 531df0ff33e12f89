"""
From the mailboxes of a device to its disk, on a thread and a loop of that disk's own.

User code never runs in the control thread: a disk that blocks, blocks itself.  Plain methods run
one at a time on the loop, ``async`` ones together as tasks.  Whatever a disk raises ends one
request; what it keeps of a request's memory ends the queue.  How jobs are done is in `served`.
"""

import asyncio
import errno
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from logging import ERROR
from typing import TypeVar

import uvloop

from vhostblk.disk.api import DiskInfo
from vhostblk.disk.call import (
    BY_DEVICE,
    Abilities,
    Calls,
    locks_while_running,
    parallel,
    run,
    starts_writeback,
)
from vhostblk.disk.stage import split
from vhostblk.engine.api import Driven, Mailbox
from vhostblk.errors import VhostBlkError
from vhostblk.server.log import Log, Told
from vhostblk.server.pool import Pool
from vhostblk.server.served import Refs, Served
from vhostblk.server.slices import Slices

_T = TypeVar("_T")
JOIN_SECONDS = 1.0
"""How long the thread may take to end once its disk is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """
    What an open disk says of itself.

    Args:
        info: Its numbers.
        can: What may be offered.
        writeback: Start value of the write cache switch.
        native: The C core could serve it without Python.
        lock_while_running: It is to be locked before it is used; see `SharedDisk`.
    """

    info: DiskInfo
    can: Abilities
    writeback: bool
    native: bool
    lock_while_running: bool = False


class Pump:
    """
    A disk's thread.  Made and used by the control thread; methods with an underscore run there.

    Args:
        disk: Any object that meets the `Disk` contract.
        log: Where its troubles are told.
        name: Of the thread.
        clock: Seconds.
        driven: What layers of the disk call of the data plane.

    Raises:
        VhostBlkError: It lacks a required method.
    """

    def __init__(
        self,
        disk: object,
        *,
        log: Log,
        name: str,
        clock: Callable[[], float] = time.perf_counter,
        driven: Sequence[Driven] = (),
    ) -> None:
        self.calls = Calls(disk)
        self._driven = driven
        self._below = split(disk)[1]  # what is behind the layers that the data plane runs
        self._does_jobs = Calls(self._below)  # not of what is driven
        self._log = log
        self._told = Told(log)
        self._clock = clock
        self._served: dict[int, Served] = {}
        self._kept: dict[int, Refs] = {}
        self._kept_keys = count()
        self._loop = _new_loop(self._below)
        self._slices = Slices(self._loop.call_soon, clock)
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parallel = parallel(self._below)
        self._pool: Pool | None = None
        self._name = f"disk {name}"
        self._thread = threading.Thread(
            target=self._main, args=(self._ended,), name=self._name, daemon=True
        )

    # ---- the control thread's side -----------------------------------------------------------

    async def open(self, before: Coroutine[object, object, None] | None = None) -> Opened:
        """
        Start the thread and open the disk on it.

        Args:
            before: Done there, first.

        Raises:
            VhostBlkError: The disk says why it cannot be opened; the thread has ended.
            Exception: Whatever else the disk raised.
        """
        self._thread.start()
        try:
            if before is not None:
                await self.on_thread(before)
            return await self.on_thread(self._open())
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self.calls.call_off()
            await self.end()
            raise

    def serve(self, mailbox: Mailbox) -> None:
        """Take the jobs of *mailbox* from now on."""
        self._loop.call_soon_threadsafe(self._serve, mailbox, self._does_jobs)

    async def forget(self, mailbox: Mailbox, *, seconds: float) -> None:
        """Take no more jobs of *mailbox*; gives up, and says so, when the disk is stuck."""
        self._loop.call_soon_threadsafe(self._forget, mailbox)
        # Comes to its turn behind it; giving up must not undo it.
        await self._bounded(asyncio.sleep(0), seconds, "a queue is left to it")

    async def flush(self, *, seconds: float) -> None:
        """
        Make every write that has returned stable.

        Raises:
            OSError: The disk could not, or not in time.
        """
        if not self.calls.can.flush:
            return
        try:
            await asyncio.wait_for(self._asked("flush", self.calls.flush), seconds)
        except VhostBlkError as error:
            raise OSError(errno.EIO, str(error)) from error
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, f"flush took more than {seconds:g} s") from None

    async def lock(self) -> None:
        """Take a disk that is locked while running; raises OSError, or what it says itself."""
        await self._asked("lock", self.calls.lock)

    async def unlock(self) -> None:
        """Let others have such a disk; raises the same."""
        await self._asked("unlock", self.calls.unlock)

    async def _asked(self, name: str, method: Callable[[], Awaitable[None] | None]) -> None:
        try:
            await self.on_thread(_by_device(method))
        except (OSError, VhostBlkError):
            raise
        except Exception as error:
            self._told.tell(ERROR, "the disk raised in %s", name, error=error)
            raise OSError(errno.EIO, f"the disk raised in {name}") from error

    async def look(self) -> DiskInfo:
        """
        Ask the disk what it is now.

        Raises:
            VhostBlkError: Its numbers cannot be a disk's.
            Exception: Whatever else the disk raised.
        """
        return await self.on_thread(self._look())

    async def resize(self, size: int) -> DiskInfo:
        """
        Have the disk become larger or smaller, and ask it what it is then.

        Raises:
            VhostBlkError: It cannot.
            Exception: Whatever else the disk raised.
        """
        return await self.on_thread(self._resize(size))

    async def inherit(self, before: object) -> DiskInfo:
        """
        Have the disk take over from an object of older code, and ask it what it is then.

        Raises:
            Exception: Whatever the disk raised.
        """
        return await self.on_thread(self._inherit(before))

    def revoke(self, mailbox: Mailbox) -> None:
        """
        Take guest memory from all jobs of *mailbox*: each was given up, and the guest told so.

        A disk that goes on with one later finds its views released.  A slice that it made before
        stays usable, and so does what it has passed to the kernel.
        """
        for served in tuple(self._served.values()):
            if served.mailbox is mailbox:
                served.revoke()
        for one in self._driven:
            one.revoke()

    def kept(self) -> int:
        """Return how many requests the disk still holds memory of, after their end."""
        for key, refs in tuple(self._kept.items()):
            if all(one() is None for one in refs):
                del self._kept[key]
        return len(self._kept)

    async def close(self, *, seconds: float) -> bool:
        """
        Close the disk and end the thread; again is harmless.

        Args:
            seconds: A disk that takes longer is left to the end of the process.

        Returns:
            Whether the disk was closed.
        """
        if self._loop.is_closed():
            return True
        closed = await self._bounded(self._close(), seconds, "it is left as it is")
        if closed:
            await self.end()
        return closed

    async def end(self) -> None:
        """End the thread; the disk is closed."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.wait([self._ended], timeout=JOIN_SECONDS)

    def on_thread(self, work: Coroutine[object, object, _T]) -> asyncio.Future[_T]:
        """Do *work* where the disk lives."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def _bounded(
        self, work: Coroutine[object, object, None], seconds: float, otherwise: str
    ) -> bool:
        try:
            await asyncio.wait_for(self.on_thread(work), seconds)
        except TimeoutError:
            self._log.error("the disk did not return within %g s: %s", seconds, otherwise)
            return False
        return True

    # ---- the disk's own thread ---------------------------------------------------------------

    def _main(self, ended: asyncio.Future[None]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_end_all(self._loop))
        finally:
            if self._pool is not None:
                self._pool.close()
            self._loop.close()
            with suppress(RuntimeError):  # nobody waits any more: that loop is closed
                ended.get_loop().call_soon_threadsafe(_resolve, ended)

    async def _open(self) -> Opened:
        for one in self._driven:
            one.on_revoked(self._cancel_revoked)
            if one.mailbox is not None:
                self._serve(one.mailbox, Calls(one.below), one.lent)
        await run(self.calls.open)
        info, can = self.calls.info(), self.calls.abilities()
        disk = self.calls.disk
        return Opened(
            info=info,
            can=can,
            writeback=starts_writeback(disk),
            native=hasattr(self._below, "native"),
            lock_while_running=locks_while_running(disk),
        )

    async def _look(self) -> DiskInfo:
        return self.calls.info()

    async def _resize(self, size: int) -> DiskInfo:
        await run(self.calls.resize, size)
        return self.calls.info()

    async def _inherit(self, before: object) -> DiskInfo:
        await run(self.calls.inherit, before)
        return self.calls.info()

    async def _close(self) -> None:
        inside = [one.mailbox for one in self._driven]  # which it may need to close
        for served in tuple(self._served.values()):
            if served.mailbox not in inside:
                self._forget(served.mailbox)
        try:
            await run(self.calls.close)
        except Exception:  # noqa: BLE001 - the disk's, whatever it is
            self._log.exception("the disk raised when it was closed")
        for mailbox in inside:
            if mailbox is not None:
                self._forget(mailbox)

    def _cancel_revoked(self) -> None:
        for served in tuple(self._served.values()):
            served.cancel_revoked()

    def _serve(
        self, mailbox: Mailbox, calls: Calls, lent: Callable[[Refs], None] = lambda _: None
    ) -> None:
        def keep(refs: Refs) -> None:
            lent(refs)
            self._kept[next(self._kept_keys)] = refs

        served = self._served[mailbox.fileno()] = Served(
            mailbox,
            calls,
            self._loop,
            log=self._log,
            told=self._told,
            keep=keep,
            clock=self._clock,
            pool=self._threads() if calls is self._does_jobs else None,
        )
        self._loop.add_reader(mailbox.fileno(), self._slices.wake, served)

    def _threads(self) -> Pool | None:
        """Return the threads that call the disk, where it may be called by several."""
        if self._pool is None and self._parallel > 1:
            self._pool = Pool(self._parallel, self._name, self._loop)
        return self._pool

    def _forget(self, mailbox: Mailbox) -> None:
        served = next((one for one in self._served.values() if one.mailbox is mailbox), None)
        if served is None:
            return
        fd = next(fd for fd, one in self._served.items() if one is served)
        del self._served[fd]
        self._loop.remove_reader(fd)
        self._slices.forget(served)
        served.stop()


async def _by_device(method: Callable[[], Awaitable[None] | None]) -> None:
    BY_DEVICE.set(True)
    await run(method)


def _new_loop(disk: object) -> asyncio.AbstractEventLoop:
    """
    Make the loop of a disk's thread; a small one where the thread has little to do.

    A disk that the C core can serve is called to be opened and closed; a uvloop has 256 KiB of
    buffers inside.
    """
    return asyncio.SelectorEventLoop() if hasattr(disk, "native") else uvloop.new_event_loop()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _end_all(loop: asyncio.AbstractEventLoop) -> None:
    """Let tasks the disk left behind see their cancellation."""
    left = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await asyncio.sleep(0)  # what they have ended is told
    await loop.shutdown_asyncgens()
