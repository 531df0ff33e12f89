"""What a job asks of its disk, and what must not be left of it when that raises."""

import traceback
from collections.abc import Callable

from vhostblk.disk.call import Calls, Pending, run
from vhostblk.engine.api import Job, Op


def call(calls: Calls, job: Job) -> Pending:
    """Call the disk's method for *job*."""
    match job.op:
        case Op.READ:
            return calls.read(job.offset, job.views)
        case Op.WRITE:
            return calls.write(job.offset, job.views, fua=job.fua)
        case Op.FLUSH:
            return calls.flush()
        case Op.DISCARD if job.fua:
            return _then(calls.discard(job.offset, job.length), calls.flush)
        case Op.DISCARD:
            return calls.discard(job.offset, job.length)
        case Op.WRITE_ZEROES:
            return calls.write_zeroes(job.offset, job.length, unmap=job.unmap, fua=job.fua)
        case Op.CANCEL:
            raise AssertionError("a CANCEL is no call")


def _then(first: Pending, second: Callable[[], Pending]) -> Pending:
    if first is None:
        return second()

    async def both() -> None:
        await first
        await run(second)

    return both()


def clear(error: BaseException | None) -> None:
    """Take the disk's locals out of a traceback: they are slices of the guest's memory."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # ``raise error from error`` is a circle
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__context__ if error.__cause__ is None else error.__cause__
