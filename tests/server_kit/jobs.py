"""Jobs without a queue."""

from array import array
from weakref import ref

from vhostblk.engine.api import Job, Op


def job(tag: int, op: Op, *, offset: int = 0, fua: bool = False) -> Job:
    """Make a job; its memory lives as long as somebody holds a view of it."""
    if op not in {Op.READ, Op.WRITE}:
        return Job(tag=tag, op=op, offset=offset, length=512, views=(), fua=fua, unmap=True)
    memory = array("B", bytes(512))
    view = memoryview(memory)
    views = (view if op is Op.READ else view.toreadonly(),)
    refs: tuple[ref[object], ...] = (ref(memory),)
    return Job(tag=tag, op=op, offset=offset, length=512, views=views, fua=fua, exporters=refs)
