"""Where a queue of the core leaves jobs for a disk that is served in Python."""

from typing import Any, cast
from weakref import ref

from vhostblk.engine.api import Job, Op
from vhostblk.engine.native.core import ffi, lib, make

TAKE = 64
"""Jobs taken from a mailbox at once."""


class NativeMailbox:
    """
    `Mailbox` over ``vhb_mailbox_*``; used by the thread that serves the disk.

    Freed when nobody holds it: a thread that is stuck in its disk may come back to take and to
    end jobs, and must meet neither freed memory nor the number of its descriptor reused.

    Args:
        slots: Jobs it can hold.
    """

    def __init__(self, slots: int) -> None:
        self.handle = ffi.gc(make("mailbox", lib.vhb_mailbox_new, slots), lib.vhb_mailbox_free)
        self.disk = lib.vhb_mailbox_disk(self.handle)
        self._jobs = ffi.new("struct vhb_job[]", TAKE)

    def fileno(self) -> int:
        """Return a descriptor that is readable while jobs wait."""
        return cast("int", lib.vhb_mailbox_fd(self.handle))

    def take(self) -> list[Job]:
        """Return the jobs that wait."""
        n = lib.vhb_mailbox_take(self.handle, self._jobs, TAKE)
        return [_job(self._jobs[i]) for i in range(n)]

    def complete(self, tag: int, errno: int) -> None:
        """End a job."""
        _check_tag(lib.vhb_mailbox_complete(self.handle, tag, -errno), tag)

    def break_queue(self, tag: int) -> None:
        """End a job whose views the disk kept."""
        _check_tag(lib.vhb_mailbox_break(self.handle, tag), tag)


def _check_tag(result: int, tag: int) -> None:
    if result < 0:
        raise ValueError(f"no job has the tag {tag:#x}, or it was ended before")


def _job(job: Any) -> Job:
    pieces = (job.pieces[i] for i in range(job.n_pieces))
    buffers = [ffi.buffer(piece.host, piece.len) for piece in pieces]
    op = Op(job.op)
    views = [memoryview(buffer) for buffer in buffers]
    if op is Op.WRITE:
        views = [view.toreadonly() for view in views]
    return Job(
        tag=job.tag,
        op=op,
        offset=job.offset,
        length=job.len,
        views=tuple(views),
        fua=bool(job.flags & lib.VHB_REQ_FUA),
        unmap=bool(job.flags & lib.VHB_REQ_UNMAP),
        exporters=tuple(ref(buffer) for buffer in buffers),
    )
