"""
One mailbox and the disk that does its jobs, on that disk's thread.

Jobs are taken and ended in batches: what a plain method has done waits for the end of the batch or
of the slice of time, so that the worker is woken once.  A disk that makes others wait for long is
told of job by job.
"""

import asyncio
import errno
import gc
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from inspect import CORO_CREATED
from logging import ERROR, WARNING
from typing import TypeAlias
from weakref import ref

from vhostblk.disk.call import Calls, Pending
from vhostblk.disk.duties import no_data
from vhostblk.engine.api import Job, Mailbox, Op
from vhostblk.server import jobs, registers
from vhostblk.server.log import Log, Told
from vhostblk.server.pool import Pool

Refs: TypeAlias = tuple[ref[object], ...]

LONG_SECONDS = 0.0001
"""A call that takes this long holds up more than a wake-up costs."""
LONG_JOBS = 256
"""How many jobs behind such a call are ended one by one."""


class Served:
    """
    A mailbox and what runs for it.

    Args:
        mailbox: Where its jobs wait.
        calls: The disk.
        loop: Its thread's.
        log: Where its troubles are told.
        told: The same, for what happens often.
        keep: Called with what the disk goes on holding of a request that has ended.
        clock: Seconds.
        pool: Threads that call the disk; None: it is called here.
    """

    def __init__(  # noqa: PLR0913 - what it works with
        self,
        mailbox: Mailbox,
        calls: Calls,
        loop: asyncio.AbstractEventLoop,
        *,
        log: Log,
        told: Told,
        keep: Callable[[Refs], None],
        clock: Callable[[], float],
        pool: Pool | None = None,
    ) -> None:
        self.mailbox = mailbox
        self._calls = calls
        self._loop = loop
        self._log = log
        self._told = told
        self._keep = keep
        self._clock = clock
        self._pool = pool
        self._jobs: dict[int, Job] = {}  # all that were taken and have not ended, by tag
        self._todo: deque[Job] = deque()  # those that have not begun
        self._tasks: dict[int, asyncio.Task[None]] = {}  # ``async`` calls under way, by tag
        self._revoked: set[int] = set()  # tags of those that were given up
        self._ended: list[tuple[int, int]] = []  # not told yet
        self._due = False  # they will be told
        self._one_by_one = 0  # jobs that are told of at once

    def work(self, until: float) -> bool:
        """
        Do the jobs that wait, until the clock says *until* or later.

        Returns:
            False when none are left: the mailbox's descriptor is readable for the next.
        """
        while self._take() or self._todo:
            self._do(until)
            if self._clock() >= until:
                return True
        return False

    def revoke(self) -> None:
        """Take guest memory from all jobs; any thread."""
        for tag, job in tuple(self._jobs.items()):
            self._revoked.add(tag)
            job.release()

    def cancel_revoked(self) -> None:
        """Have ``async`` calls of jobs that memory was taken from end, now."""
        for tag in tuple(self._revoked):
            task = self._tasks.get(tag)
            if task is not None and inspect.getcoroutinestate(task.get_coro()) != CORO_CREATED:  # type: ignore[arg-type]
                task.cancel()  # else: see `_cancel`

    def stop(self) -> None:
        """End what has not begun, and have all ``async`` calls end."""
        while self._todo:
            self._end(self._todo.popleft(), errno.ECANCELED)
        self._tell()
        for task in self._tasks.values():
            self._cancel(task)

    def _take(self) -> bool:
        taken = self.mailbox.take()
        for job in taken:
            if job.op is Op.CANCEL:
                self._give_up(job.tag)
            else:
                self._jobs[job.tag] = job
                self._todo.append(job)
        return bool(taken)

    def _give_up(self, tag: int) -> None:
        task = self._tasks.get(tag)
        if task is not None:
            self._cancel(task)
        elif tag in self._jobs:  # it has not begun: the disk was busy with another
            self._revoked.add(tag)

    def _cancel(self, task: asyncio.Task[None]) -> None:
        # Behind its first step: one that is cancelled before never runs, and would not end its job.
        self._loop.call_soon(task.cancel)

    def _do(self, until: float) -> None:
        todo, clock, revoked = self._todo, self._clock, self._revoked
        before = clock()
        while todo:
            job = todo.popleft()
            if job.tag in revoked:
                self._end(job, errno.ECANCELED)
            else:
                self._start(job)
            now = clock()
            if now - before >= LONG_SECONDS:
                self._one_by_one = LONG_JOBS
            if self._one_by_one:
                self._one_by_one -= 1
                self._tell()
            if now >= until:
                break
            before = now
        self._tell()

    def _start(self, job: Job) -> None:
        if self._pool is not None:
            waiting = self._finish(job, self._in_thread(self._pool, job))
            self._tasks[job.tag] = self._loop.create_task(waiting)
            return
        try:
            pending = jobs.call(self._calls, job)
        except BaseException as error:  # noqa: BLE001 - the disk's, whatever it is
            self._end(job, self._errno(job, error))
            return
        if pending is None:
            self._end(job, 0)
        else:
            self._tasks[job.tag] = self._loop.create_task(self._finish(job, pending))

    async def _in_thread(self, pool: Pool, job: Job) -> object:
        """Do a job in another thread; what is ``async`` of it, here."""

        def call() -> Pending:
            lost = self.mailbox.lost()
            pending = jobs.call(self._calls, job)
            if self.mailbox.lost() != lost:  # zeroes were read, or nothing written
                raise OSError(errno.EFAULT, "guest memory has vanished under the request")
            return pending

        pending: Awaitable[object] | None = await pool.call(call)
        return None if pending is None else await pending

    async def _finish(self, job: Job, pending: Awaitable[object]) -> None:
        returned: object = None
        try:
            returned = await pending
            if returned is not None and job.op is Op.READ:
                no_data(self._calls.disk, returned)
        except BaseException as error:  # noqa: BLE001 - the disk's, whatever it is
            code = self._errno(job, error)
        else:
            code = 0
        del pending  # a coroutine that has raised holds on to its frame
        del returned  # it may be guest memory
        self._tasks.pop(job.tag, None)
        self._end(job, code)
        del job  # a traceback that somebody has logged and keeps holds on to this one
        if not self._due:  # others may end in this round of the loop
            self._due = True
            self._loop.call_soon(self._tell)

    def _errno(self, job: Job, error: BaseException) -> int:
        if isinstance(error, asyncio.CancelledError):
            return errno.ECANCELED
        if job.tag in self._revoked:
            jobs.clear(error)
            return errno.ECANCELED  # its memory was taken from under it
        where = f"{job.op.name} of {job.length} bytes at {job.offset}"
        if isinstance(error, OSError):
            self._told.tell(WARNING, "%s failed: %s", where, error)
            # Whoever raises one may give it anything.
            code = error.errno if isinstance(error.errno, int) and error.errno else errno.EIO
        else:
            self._told.tell(ERROR, "the disk raised on %s", where, error=error)
            code = errno.EIO
        jobs.clear(error)
        return code

    def _end(self, job: Job, code: int) -> None:
        self._jobs.pop(job.tag, None)
        self._revoked.discard(job.tag)
        if job.release() or self._is_free(job):
            self._ended.append((job.tag, code))
            return
        # Before the queue breaks: who sees it broken and drained must see this, too.
        self._keep(job.exporters)
        self._log.error(
            "the disk kept guest memory of %s at %d after its end, which is a bug in it: "
            "a write through it could corrupt the guest, so the queue is stopped",
            job.op.name,
            job.offset,
        )
        self._tell()
        registers.forget()
        self.mailbox.break_queue(job.tag)

    def _is_free(self, job: Job) -> bool:
        """Whether nobody who could use it holds a part of a job that is over."""
        # An exception in a cycle with its frame may hold slices; it is young.
        return any(gc.collect(generation) >= 0 and job.release() for generation in range(3))

    def _tell(self) -> None:
        """Tell the worker what has ended."""
        self._due = False
        if self._ended:
            registers.forget()
            ended, self._ended = self._ended, []
            self.mailbox.complete(ended)
