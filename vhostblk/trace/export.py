"""A trace in the words of other tools: fio's iolog, and what blkparse prints."""

from collections.abc import Iterator

from vhostblk.trace.format import SECTOR, Op
from vhostblk.trace.reader import Segment
from vhostblk.trace.records import NO_QUEUE, Completed, Lost, Submitted

_FIO = {
    Op.READ: "read",
    Op.WRITE: "write",
    Op.FLUSH: "sync",
    Op.DISCARD: "trim",
    Op.WRITE_ZEROES: "trim",
}
_RWBS = {Op.READ: "R", Op.WRITE: "W", Op.FLUSH: "FN", Op.DISCARD: "D", Op.WRITE_ZEROES: "WZ"}


def fio(segment: Segment, name: str) -> Iterator[str]:
    """
    Yield lines of an iolog, version 3, for fio's ``read_iolog``.

    Times are microseconds, as fio has written them since that version.  What has no word there is
    put into the nearest: zeroes are a trim, FUA is a sync behind the write.

    Args:
        segment: What was recorded.
        name: Of the file or device that fio is to use.
    """
    yield "fio version 3 iolog"
    yield f"0 {name} add"
    yield f"0 {name} open"
    last = 0
    for step in segment.steps():
        if not isinstance(step, Submitted):
            continue
        last = max(last, step.time // 1000)
        yield f"{last} {name} {_FIO[step.op]} {step.offset} {step.length}"
        if step.fua:
            yield f"{last} {name} sync 0 0"
    yield f"{last} {name} close"


def blktrace(segment: Segment) -> Iterator[str]:
    """
    Yield lines as ``blkparse`` prints them by default: D where one is issued, C where it is over.

    The device is 0,0; the queue stands for the CPU, its process has the number 0.
    """
    under_way: dict[int, Submitted] = {}
    number = 0
    for step in segment.steps():
        match step:
            case Submitted():
                under_way[step.seq] = step
                submitted, end = step, ""
            case Completed():
                found = under_way.pop(step.submit, None)
                if found is None:
                    continue
                submitted, end = found, f"[{step.error}]"
            case Lost():
                continue
        number += 1
        yield _line(step.time, number, submitted, end)


def _line(time: int, number: int, submitted: Submitted, end: str) -> str:
    seconds, ns = divmod(max(time, 0), 10**9)
    cpu = 0 if submitted.queue == NO_QUEUE else submitted.queue
    action, end = ("C", end) if end else ("D", "[vhostblk]")
    rwbs = _RWBS[submitted.op] + "F" * submitted.fua
    place = f"{submitted.offset // SECTOR} + {submitted.length // SECTOR}"
    return (
        f"{'0,0':>7} {cpu:>2} {number:>8} {seconds:>5}.{ns:09} {0:>5} {action:>2} {rwbs:>3} "
        f"{place} {end}"
    )
