"""
Threads that call the plain methods of a disk which says that it may be called by several.

They are daemons: a disk that never returns does not hold up the end of the process.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

_T = TypeVar("_T")


class Pool:
    """
    Some threads; made and used on the disk's own.

    Args:
        threads: How many.
        name: Of each.
        loop: Where what they return is waited for.
    """

    def __init__(self, threads: int, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._main, name=f"{name} {n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    async def call(self, function: Callable[[], _T]) -> _T:
        """
        Call *function* in one of the threads, and wait for it.

        Who is cancelled meanwhile goes on waiting, and is cancelled then: a thread cannot be
        stopped, and what it uses must not be taken from it.
        """
        done: asyncio.Future[_T] = self._loop.create_future()

        def work() -> None:
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - the disk's, whatever it is
                self._tell(_fail, done, error)
            else:
                self._tell(_resolve, done, result)

        self._work.put(work)
        cancelled = False
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            done.exception()  # which nobody is told of
            raise asyncio.CancelledError
        return done.result()

    def _tell(self, how: Callable[..., None], *what: object) -> None:
        with suppress(RuntimeError):  # nobody waits any more: that loop is closed
            self._loop.call_soon_threadsafe(how, *what)

    def close(self) -> None:
        """Have each thread end when it has done what it does."""
        for _ in self._threads:
            self._work.put(None)

    def _main(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work


def _resolve(done: "asyncio.Future[_T]", result: _T) -> None:
    done.set_result(result)


def _fail(done: "asyncio.Future[_T]", error: BaseException) -> None:
    if isinstance(error, StopIteration):  # which no future takes
        error = RuntimeError("StopIteration")
    done.set_exception(error)
