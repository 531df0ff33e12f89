"""
The C core as a data plane; the only file that imports the compiled module.

No logic here: errno becomes an exception, events become futures, and what C points at is kept
alive.  The contract is ``native/include/vhostblk.h``.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields
from errno import EBUSY
from typing import Any, cast
from weakref import ref

from vhostblk._native import ffi, lib

from vhostblk.blk.device import MAX_RANGES, BlkDevice
from vhostblk.disk.api import Disk, NativeDisk, NativeFile, NativeMemory, NativeNull, NativeSpec
from vhostblk.engine.api import Busy, Counters, Fault, Job, Op, Piece
from vhostblk.engine.reason import Reason
from vhostblk.errors import VhostBlkError
from vhostblk.memory.space import Segment
from vhostblk.spec.virtio_blk import SECTOR_SIZE
from vhostblk.spec.virtio_ring import F_EVENT_IDX, F_INDIRECT_DESC, MAX_QUEUE_SIZE

_log = logging.getLogger(__name__)
_lib: Any = lib
_ffi: Any = ffi

SPIN_US = 50
"""Microseconds a worker looks on after the last request before it sleeps."""
TAKE = 64
"""Jobs taken from a mailbox at once."""
SLOTS = 2 * MAX_QUEUE_SIZE
"""Requests a queue can have with its disk, dead ones among them."""


def _check(result: int, what: str) -> int:
    """Turn -errno into an exception that says *what* failed."""
    if result >= 0:
        return result
    if -result == EBUSY:
        raise Busy(f"{what}: the worker owns the queue")
    raise VhostBlkError(f"{what}: {os.strerror(-result)}")


def _make(kind: str, new: Any, *args: object) -> Any:
    """Call a ``vhb_…_new`` and return the ``struct vhb_kind *`` it made."""
    out = _ffi.new(f"struct vhb_{kind} **")
    _check(new(*args, out), kind)
    return out[0]


class _Worker:
    """A thread inside ``vhb_worker_run`` and the events of its queues."""

    def __init__(self, index: int, loop: asyncio.AbstractEventLoop, *, threaded: bool) -> None:
        config = _ffi.new("struct vhb_worker_config *", {"spin_us": SPIN_US})
        self.handle = _make("worker", _lib.vhb_worker_new, config)
        self.queues: set[NativeQueue] = set()
        self._loop = loop
        self._event_fd: int = _lib.vhb_worker_event_fd(self.handle)
        uring = _lib.vhb_worker_uring(self.handle)
        if uring < 0:
            _log.warning(
                "io_uring is refused (%s): serving with preadv/pwritev", os.strerror(-uring)
            )
        loop.add_reader(self._event_fd, self._on_events)
        self._thread = threading.Thread(
            target=_lib.vhb_worker_run, args=(self.handle,), name=f"vhb-worker-{index}", daemon=True
        )
        if threaded:
            self._thread.start()

    def _on_events(self) -> None:
        os.read(self._event_fd, 8)
        for queue in tuple(self.queues):
            queue.on_events(_lib.vhb_queue_take_events(queue.handle))

    async def close(self) -> None:
        """End the thread; a worker whose disk never answered is left to the process's end."""
        self._loop.remove_reader(self._event_fd)
        _lib.vhb_worker_stop(self.handle)
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        if _lib.vhb_worker_free(self.handle) < 0:
            _log.error("a disk still holds requests: its worker cannot be freed")


class NativeMailbox:
    """`Mailbox` over ``vhb_mailbox_*``; used by the thread that serves the disk."""

    def __init__(self, slots: int) -> None:
        self.handle = _make("mailbox", _lib.vhb_mailbox_new, slots)
        self.disk = _lib.vhb_mailbox_disk(self.handle)
        self._jobs = _ffi.new("struct vhb_job[]", TAKE)
        self._closed = False

    def fileno(self) -> int:
        """Return a descriptor that is readable while jobs wait."""
        return cast("int", _lib.vhb_mailbox_fd(self.handle))

    def take(self) -> list[Job]:
        """Return the jobs that wait."""
        if self._closed:
            return []
        n = _lib.vhb_mailbox_take(self.handle, self._jobs, TAKE)
        return [_job(self._jobs[i]) for i in range(n)]

    def complete(self, tag: int, errno: int) -> None:
        """End a job."""
        _check_tag(-1 if self._closed else _lib.vhb_mailbox_complete(self.handle, tag, -errno), tag)

    def break_queue(self, tag: int) -> None:
        """End a job whose views the disk kept."""
        _check_tag(-1 if self._closed else _lib.vhb_mailbox_break(self.handle, tag), tag)

    def close(self) -> None:
        """Free the box, whose queue was freed; nothing waits in it from then on."""
        self._closed = True
        _check(_lib.vhb_mailbox_free(self.handle), "mailbox")


def _check_tag(result: int, tag: int) -> None:
    if result < 0:
        raise ValueError(f"no job has the tag {tag:#x}, or it was ended before")


def _job(job: Any) -> Job:
    pieces = (job.pieces[i] for i in range(job.n_pieces))
    buffers = [_ffi.buffer(piece.host, piece.len) for piece in pieces]
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
        fua=bool(job.flags & _lib.VHB_REQ_FUA),
        unmap=bool(job.flags & _lib.VHB_REQ_UNMAP),
        exporters=tuple(ref(buffer) for buffer in buffers),
    )


def _native_disk(spec: NativeSpec) -> Any:
    """Make the C disk for a disk that needs no Python."""
    match spec:
        case NativeFile():
            flags = (_lib.VHB_FILE_DIRECT if spec.direct else 0) | (
                _lib.VHB_FILE_BLOCK_DEVICE if spec.block_device else 0
            )
            aligns = spec.mem_align, spec.offset_align
            return _make("disk", _lib.vhb_disk_file_new, spec.fd, flags, *aligns)
        case NativeMemory():
            host = _ffi.cast("void *", spec.address)
            return _make("disk", _lib.vhb_disk_memory_new, host, spec.size)
        case NativeNull():
            return _make("disk", _lib.vhb_disk_null_new, spec.zero)


class NativeQueue:
    """`Queue` over ``vhb_queue_*``."""

    def __init__(
        self, worker: _Worker, device: "NativeDevice", on_broken: Callable[[], None]
    ) -> None:
        self._mailbox = None if device.disk is not None else NativeMailbox(SLOTS)
        disk = device.disk if self._mailbox is None else self._mailbox.disk
        shared = worker.handle, disk, device.graveyard
        self.handle = _make("queue", _lib.vhb_queue_new, *shared, MAX_QUEUE_SIZE)
        self._worker = worker
        self._device = device
        self._on_broken = on_broken
        self._closed = False
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._fds: dict[str, int] = {}
        self._old_kicks: list[int] = []
        worker.queues.add(self)

    @property
    def mailbox(self) -> NativeMailbox | None:
        """Where this queue's jobs wait."""
        return self._mailbox

    # ---- settings -------------------------------------------------------------------------

    def set_space(self, segments: Sequence[Segment]) -> None:
        """Point the queue at new segments."""
        table = _ffi.new("struct vhb_segment[]", len(segments))
        for row, segment in zip(table, segments, strict=True):
            row.iova, row.len = segment.iova, segment.length
            row.host = _ffi.cast("void *", segment.host)
            row.log_page, row.access = segment.log_page, int(segment.access)
        _check(_lib.vhb_queue_set_space(self.handle, table, len(segments)), "memory table")

    def set_ring(
        self, *, size: int, desc: Sequence[Piece], avail: Sequence[Piece], used: Sequence[Piece]
    ) -> None:
        """Say where the ring lives."""
        _check(_lib.vhb_queue_set_size(self.handle, size), f"ring size {size}")
        for part, pieces in enumerate((desc, avail, used)):
            table = _ffi.new(
                "struct vhb_piece[]", [(_ffi.cast("void *", host), n) for host, n in pieces]
            )
            _check(_lib.vhb_queue_set_part(self.handle, part, table, len(pieces)), "ring address")

    def set_base(self, base: int) -> None:
        """Set the next avail entry to take."""
        _check(_lib.vhb_queue_set_base(self.handle, base), "base")

    def base(self) -> int:
        """Return the next avail entry not yet taken."""
        return _check(_lib.vhb_queue_base(self.handle), "base")

    def set_kick(self, fd: int | None) -> None:
        """Take over an eventfd; None: the ring is polled."""
        self._set_fd("kick", fd)

    def set_call(self, fd: int | None) -> None:
        """Take over an eventfd (made non-blocking); None: the driver is never called."""
        self._set_fd("call", fd)

    def set_err(self, fd: int | None) -> None:
        """Take over an eventfd that is written when the queue breaks."""
        self._set_fd("err", fd)

    def _set_fd(self, kind: str, fd: int | None) -> None:
        if fd is not None:
            os.set_blocking(fd, False)  # a full or foreign one must not stop the worker
        setter = getattr(_lib, f"vhb_queue_set_{kind}")
        _check(setter(self.handle, -1 if fd is None else fd), f"{kind} fd")
        old = self._fds.pop(kind, None)
        if old is not None and kind == "kick":
            self._old_kicks.append(old)  # the worker may still watch it until its next answer
        elif old is not None:
            os.close(old)
        if fd is not None:
            self._fds[kind] = fd

    def set_enabled(self, *, enabled: bool) -> None:
        """Say whether the queue may take new requests."""
        _check(_lib.vhb_queue_set_enabled(self.handle, enabled), "enable")

    def set_features(self, features: int) -> None:
        """Set the feature bits the driver acked."""
        _check(_lib.vhb_queue_set_features(self.handle, features), "features")

    def set_blk(self, blk: BlkDevice, *, writethrough: bool) -> None:
        """Set what requests are checked against."""
        flags = {
            _lib.VHB_BLK_READ_ONLY: blk.read_only,
            _lib.VHB_BLK_WRITETHROUGH: writethrough,
            _lib.VHB_BLK_DISCARD: blk.discard,
            _lib.VHB_BLK_WRITE_ZEROES: blk.write_zeroes,
            _lib.VHB_BLK_UNMAP: blk.may_unmap,
        }
        settings = {
            "capacity_sectors": blk.capacity_sectors,
            "block_size": blk.block_size,
            "flags": sum(flag for flag, on in flags.items() if on),
            "max_discard_sectors": blk.max_discard // SECTOR_SIZE,
            "max_discard_seg": MAX_RANGES,
            "max_write_zeroes_sectors": blk.max_write_zeroes // SECTOR_SIZE,
            "max_write_zeroes_seg": MAX_RANGES,
            "serial": blk.serial,
        }
        value = _ffi.new("struct vhb_blk *", settings)
        _check(_lib.vhb_queue_set_blk(self.handle, value), "device settings")

    # ---- ownership ------------------------------------------------------------------------

    def run(self) -> None:
        """Hand the ring to the worker."""
        _check(_lib.vhb_queue_run(self.handle), "ring")

    async def parked(self) -> None:
        """Get the ring back between two requests."""
        if self._ours():
            return
        _check(_lib.vhb_queue_park(self.handle), "park")
        await self._event(_lib.VHB_PARKED)

    async def drained(self, *, seconds: float) -> int:
        """Get the ring back with nothing in flight; how many requests are dead."""
        _check(_lib.vhb_queue_drain(self.handle), "drain")
        try:
            async with asyncio.timeout(seconds):
                await self._event(_lib.VHB_DRAINED)
        except TimeoutError:
            _check(_lib.vhb_queue_cancel(self.handle), "cancel")
            await self._event(_lib.VHB_DRAINED)
        return self.counters().dead

    def _ours(self) -> bool:
        return cast("int", _lib.vhb_queue_base(self.handle)) >= 0

    async def _event(self, event: int) -> None:
        """Wait for an event; shielded, since an answer may come after we stop listening."""
        future = self._waiting.get(event)
        if future is None:
            future = self._waiting[event] = asyncio.get_running_loop().create_future()
        await asyncio.shield(future)

    def on_events(self, events: int) -> None:
        """Hand out what the worker posted; on the control thread."""
        if events & (_lib.VHB_PARKED | _lib.VHB_DRAINED) and self._ours():
            while self._old_kicks:
                os.close(self._old_kicks.pop())
            self._resolve(events)
        if events & _lib.VHB_DETACHED:
            self._resolve(_lib.VHB_DETACHED)
        if events & _lib.VHB_BROKEN:
            self._on_broken()

    def _resolve(self, events: int) -> None:
        for event in [e for e in self._waiting if e & events]:
            future = self._waiting.pop(event)
            if not future.done():
                future.set_result(None)

    # ---- what can be asked ----------------------------------------------------------------

    def fault(self) -> Fault | None:
        """Return why the queue is broken, None while it is not."""
        out = _ffi.new("struct vhb_fault *")
        _lib.vhb_queue_fault(self.handle, out)
        if out.reason == _lib.VHB_OK:
            return None
        return Fault(Reason(out.reason).text, out.index, out.value)

    def counters(self) -> Counters:
        """Return what the queue has counted."""
        out = _ffi.new("struct vhb_counters *")
        _lib.vhb_queue_counters(self.handle, out)
        return Counters(**{field.name: getattr(out, field.name) for field in fields(Counters)})

    async def close(self) -> None:
        """Forget the ring and close its eventfds; waits for dead requests in the background."""
        if self._closed:
            return
        self._closed = True
        if not self._ours():
            await self.drained(seconds=0)
        _check(_lib.vhb_queue_detach(self.handle), "detach")
        if self.counters().dead:
            self._device.wait_for_dead(asyncio.ensure_future(self._forgotten()))
            return
        await self._forgotten()

    async def _forgotten(self) -> None:
        await self._event(_lib.VHB_DETACHED)
        self._worker.queues.discard(self)
        self._device.forget(self)
        for fd in (*self._fds.values(), *self._old_kicks):
            os.close(fd)
        _check(_lib.vhb_queue_free(self.handle), "free")
        if self._mailbox is not None:
            self._mailbox.close()


class NativeDevice:
    """`DeviceEngine`: what the queues of one disk share."""

    def __init__(self, engine: "NativeEngine", disk: Disk) -> None:
        self._engine = engine
        native = getattr(disk, "native", None)
        self.disk = None if native is None else _native_disk(cast("NativeDisk", disk).native())
        self.graveyard = _make("graveyard", _lib.vhb_graveyard_new)
        self._queues: set[NativeQueue] = set()
        self._late: set[asyncio.Future[None]] = set()

    def queue(self, index: int, *, on_broken: Callable[[], None]) -> NativeQueue:
        """Make a queue on the worker its index falls to."""
        queue = NativeQueue(self._engine.worker(index), self, on_broken)
        self._queues.add(queue)
        return queue

    def forget(self, queue: NativeQueue) -> None:
        """Drop a queue that was freed."""
        self._queues.discard(queue)

    def wait_for_dead(self, freed: asyncio.Future[None]) -> None:
        """Let a closed queue wait for its dead requests in the background."""
        self._late.add(freed)
        freed.add_done_callback(self._late.discard)

    def dead(self) -> int:
        """Return how many cancelled requests are still with the disk."""
        return sum(queue.counters().dead for queue in self._queues)

    async def close(self) -> None:
        """Let go of the disk; what dead requests still use is left to the process's end."""
        if self._late:
            _log.error("%d cancelled requests never came back from the disk", self.dead())
            for freed in self._late:
                freed.cancel()
            return
        if self.disk is not None:
            _check(_lib.vhb_disk_free(self.disk), "disk")
        _check(_lib.vhb_graveyard_free(self.graveyard), "graveyard")


class NativeEngine:
    """
    `Engine`: workers, made as queues need them, one per queue up to the number of CPUs.

    Args:
        workers: How many at most; None: as many as there are CPUs.
        threaded: Each works on a thread of its own; without it only `step` works.
    """

    def __init__(self, workers: int | None = None, *, threaded: bool = True) -> None:
        self._limit = workers or len(os.sched_getaffinity(0))
        self._threaded = threaded
        self._workers: list[_Worker] = []
        _check(_lib.vhb_fault_install(), "SIGBUS handler")

    @property
    def name(self) -> str:
        """``native``."""
        return "native"

    @property
    def ring_features(self) -> int:
        """Ring feature bits it can."""
        return F_INDIRECT_DESC | F_EVENT_IDX

    def device(self, disk: Disk) -> NativeDevice:
        """Get ready to serve an open *disk*."""
        return NativeDevice(self, disk)

    def guard(self, host: int, length: int, page: int) -> Callable[[], None]:
        """Survive guest memory that vanishes under a mapping."""
        slot = _check(_lib.vhb_fault_watch(_ffi.cast("void *", host), length, page), "guard")

        def end() -> None:
            _check(_lib.vhb_fault_unwatch(slot), "guard")

        return end

    def worker(self, index: int) -> _Worker:
        """Return the worker for a queue of this index."""
        while len(self._workers) <= index % self._limit:
            loop = asyncio.get_running_loop()
            self._workers.append(_Worker(len(self._workers), loop, threaded=self._threaded))
        return self._workers[index % self._limit]

    def step(self) -> int:
        """Make one pass of every worker that never blocks; how much was done."""
        return sum(_check(_lib.vhb_worker_step(worker.handle), "step") for worker in self._workers)

    async def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            await worker.close()
        self._workers.clear()
