"""
Requests of several steps, in front of disks that are plain or ``async``.

A request is written once, as a generator that yields what a method of the disk below has returned;
`walk` takes its steps.  In front of a plain disk none of them waits, and the request costs no task
and no coroutine; from the first step that has to be waited for on, the rest is a coroutine.
"""

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from vhostblk.disk.call import Pending

Steps = Generator[Pending, None, None]
"""Yields what is to be waited for, or None; what that raises is raised at the ``yield``."""


def walk(steps: Steps) -> Pending:
    """Take all steps; from the first that waits on, in a coroutine."""
    for pending in steps:
        if pending is not None:
            return _rest(pending, steps)
    return None


async def _rest(pending: Pending, steps: Steps) -> None:
    try:
        while True:
            try:
                if pending is not None:
                    await pending
            except BaseException as error:  # noqa: BLE001 - the request's to handle or to pass
                pending = steps.throw(error)
            else:
                pending = next(steps)
    except StopIteration:
        return


class Cursor:
    """
    Takes views apart, from the first byte on.

    Args:
        views: In order.  What is made of them must be gone when the request is.
    """

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = views
        self._index = 0
        self._at = 0

    def take(self, length: int) -> list[memoryview]:
        """Return the next *length* bytes."""
        taken: list[memoryview] = []
        while length:
            view = self._views[self._index]
            part = view[self._at : self._at + length]
            length -= len(part)
            self._at += len(part)
            if self._at == len(view):
                self._index, self._at = self._index + 1, 0
            if len(part):
                taken.append(part)
        return taken


@dataclass(eq=False, slots=True)
class Turn:
    """
    A request's place among those that overlap it.

    Args:
        start: Its first byte, or block.
        end: The one behind its last.
        alone: Others that overlap it wait, and it waits for them; False: only for those that are.
        behind: Those it waits for.
        ready: Done when there are none any more; None: nobody waits.
    """

    start: int
    end: int
    alone: bool
    behind: set["Turn"] = field(default_factory=set)
    ready: asyncio.Future[None] | None = None


class Turns:
    """
    Has requests that overlap take their turns, in the order they came.

    Used on one thread, that of the disk.  A request holds one turn at a time, so none waits in a
    circle.
    """

    def __init__(self) -> None:
        self._all: dict[Turn, None] = {}

    def ask(self, start: int, end: int, *, alone: bool) -> Turn:
        """Take a place; `end` must follow, whatever happens."""
        turn = Turn(start, end, alone)
        for other in self._all:
            if other.start < end and start < other.end and (alone or other.alone):
                turn.behind.add(other)
        self._all[turn] = None
        return turn

    def wait(self, turn: Turn) -> Pending:
        """Wait until it is this one's turn; None: it is."""
        if not turn.behind:
            return None
        turn.ready = asyncio.get_running_loop().create_future()
        return turn.ready

    def end(self, turn: Turn) -> None:
        """Let those behind have theirs."""
        del self._all[turn]
        for other in self._all:
            other.behind.discard(turn)
            if not other.behind and other.ready is not None and not other.ready.done():
                other.ready.set_result(None)

    def is_free(self, start: int, end: int) -> bool:
        """Tell whether nobody has, or waits for, a turn there."""
        return not any(one.start < end and start < one.end for one in self._all)
