"""What a disk that is served in Python is asked; part of `vhostblk.engine.api`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import ref

from vhostblk.engine.op import Op


@dataclass(slots=True)
class Job:
    """
    One request to a disk that is served in Python.

    As good as frozen, which would make each of them three times as dear.

    Args:
        tag: Names the job towards `Mailbox.complete`.
        op: What to do; CANCEL: the job of this tag is dead, stop working on it.
        offset: First byte on the disk.
        length: Bytes.
        views: READ: writable, WRITE: read-only; in guest order, *length* bytes in all.
        fua: Stable before it completes.
        unmap: A hole is welcome (WRITE_ZEROES).
        exporters: Weak references to the objects that *views* were made from.
    """

    tag: int
    op: Op
    offset: int
    length: int
    views: tuple[memoryview, ...]
    fua: bool = False
    unmap: bool = False
    exporters: tuple[ref[object], ...] = ()

    def release(self) -> bool:
        """
        End the life of the views; called by the pump when the disk's method has returned.

        Releasing a memoryview does not end its slices (CPython counts them with what the view
        was made from, and only views of *other* kinds make the release raise), so what it was
        made from tells: it is gone when nobody holds any part of it.

        Returns:
            False when the disk still holds a view, or a slice of one: that disk's bug.
        """
        kept = False
        for view in self.views:
            try:
                view.release()
            except BufferError:
                kept = True
        for exporter in self.exporters:
            if exporter() is not None:
                return False
        return not kept


class Mailbox(Protocol):
    """
    Where a queue leaves jobs for a Python disk; used by one thread of the disk's.

    The server's pump takes jobs, releases their views when the disk's method returns, and then
    completes them.
    """

    def fileno(self) -> int:
        """Return a descriptor that is readable while jobs wait."""
        ...

    def take(self) -> list[Job]:
        """
        Return jobs that wait, CANCELs among them; empty when there are none.

        What was given up before it was taken is ended here, and not shown.  Only behind a take
        that found nothing does the next job make the descriptor readable.
        """
        ...

    def complete(self, ended: Sequence[tuple[int, int]]) -> None:
        """
        End jobs; dead ones are ended the same way.

        Args:
            ended: (tag, errno), 0 for success.

        Raises:
            ValueError: A tag names no job, or one that was ended; the others are ended.
        """
        ...

    def lost(self) -> int:
        """Return how many pages of guest memory have vanished under the calling thread; any."""
        ...

    def break_queue(self, tag: int) -> None:
        """End a job whose views the disk kept: it fails, and its queue breaks."""
        ...
