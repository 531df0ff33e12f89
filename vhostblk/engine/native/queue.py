"""A virtqueue of the core: settings in, what it is asked for awaited."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Protocol, TypeAlias, cast

from vhostblk.blk.device import MAX_RANGES, BlkDevice
from vhostblk.engine.api import (
    Counters,
    Fault,
    Latency,
    Miss,
    OnError,
    Op,
    Piece,
    Slow,
    Stall,
)
from vhostblk.engine.native.core import check, ffi, lib, make
from vhostblk.engine.native.mailbox import NativeMailbox
from vhostblk.engine.native.stages import Layers, NativeStage
from vhostblk.engine.native.table import Tables
from vhostblk.engine.native.tell import Take, latency, pieces_table, slow, take_note, take_samples
from vhostblk.engine.native.worker import Worker
from vhostblk.engine.reason import Reason
from vhostblk.memory.dirty import DirtyLog
from vhostblk.memory.sample import Sample
from vhostblk.memory.space import Access, Segment
from vhostblk.spec.virtio_blk import SECTOR_SIZE
from vhostblk.spec.virtio_ring import MAX_QUEUE_SIZE

_POLICIES = {
    OnError.REPORT: lib.VHB_ON_ERROR_REPORT,
    OnError.STOP: lib.VHB_ON_ERROR_STOP,
    OnError.ENOSPC: lib.VHB_ON_ERROR_ENOSPC,
}
SLOTS = 2 * MAX_QUEUE_SIZE
"""Requests a queue can have with its disk, dead ones among them."""

_Last: TypeAlias = tuple[Counters, Fault | None, Mapping[Op, Latency]]


class Share(Protocol):
    """What the queues of one device share, as one of them sees it."""

    disk: Any
    stages: Sequence[NativeStage]
    graveyard: Any
    tables: Tables

    def forget(self, queue: "NativeQueue") -> None:
        """Drop a queue that was freed."""
        ...

    def wait_for_dead(self, freed: asyncio.Future[None]) -> None:
        """Let a closed queue wait for its dead requests in the background."""
        ...


class NativeQueue:
    """
    `Queue` over ``vhb_queue_*``.

    Args:
        worker: Serves it.
        device: Its disk, None inside for one that is served through a mailbox.
        on_broken: Called on the control thread when the queue breaks.
    """

    def __init__(self, worker: Worker, device: Share, on_broken: Callable[[], None]) -> None:
        self._mailbox = None if device.disk is not None else NativeMailbox(SLOTS)
        # Where nobody but this queue uses the disk, its layers are this queue's, too.
        own = () if self._mailbox is None else device.stages
        below = device.disk if self._mailbox is None else self._mailbox.disk
        self._layers = Layers(own, below)
        shared = worker.handle, self._layers.disk, device.graveyard
        self.handle = make("queue", lib.vhb_queue_new, *shared, MAX_QUEUE_SIZE)
        self._base = ffi.new("uint32_t *")
        self._worker = worker
        self._device = device
        self._on_broken = on_broken
        self._on_miss: Callable[[Miss], None] | None = None
        self._on_samples: Callable[[], None] | None = None
        self._on_stalled: Callable[[Stall], None] | None = None
        self._on_failed: Callable[[Stall], None] | None = None
        self._on_busy: Callable[[], None] | None = None
        self._condemned_for = ""
        self._closed = False
        self._detached = False
        self._last: _Last | None = None  # once it is freed
        self._news, self._fds = asyncio.Event(), dict[str, int]()
        self._log: DirtyLog | None = None
        worker.take(self)

    @property
    def mailbox(self) -> NativeMailbox | None:
        """Where this queue's jobs wait."""
        return self._mailbox

    @property
    def worker(self) -> int:
        """Which worker serves it."""
        return self._worker.index

    # ---- settings -------------------------------------------------------------------------

    def set_space(self, segments: Sequence[Segment]) -> None:
        """Point the queue at new segments."""
        table = self._device.tables.of(segments)
        check(lib.vhb_queue_set_space(self.handle, table, len(segments)), "memory table")

    def set_ask(self, on_miss: Callable[[Miss], None] | None) -> None:
        """Say whether what is in no segment is asked for."""
        check(lib.vhb_queue_set_ask(self.handle, on_miss is not None), "misses")
        self._on_miss = on_miss

    def deny(self, iova: int, length: int) -> None:
        """Deny a range to the chain that waits for it."""
        check(lib.vhb_queue_deny(self.handle, iova, length), "denial")

    def set_ring(
        self, *, size: int, desc: Sequence[Piece], avail: Sequence[Piece], used: Sequence[Piece]
    ) -> None:
        """Say where the ring lives."""
        check(lib.vhb_queue_set_size(self.handle, size), f"ring size {size}")
        for part, pieces in enumerate((desc, avail, used)):
            table = pieces_table(pieces)
            check(lib.vhb_queue_set_part(self.handle, part, table, len(pieces)), "ring address")

    def set_base(self, base: int) -> None:
        """Set the next avail entry to take."""
        check(lib.vhb_queue_set_base(self.handle, base), "base")

    def base(self) -> int:
        """Return the next avail entry not yet taken."""
        check(lib.vhb_queue_base(self.handle, self._base), "base")
        return cast("int", self._base[0])

    def set_inflight(self, memory: Piece | None, *, size: int) -> None:
        """Say where is noted what is taken and not yet given back."""
        host, length = memory or (0, 0)
        region = ffi.cast("void *", host)
        check(lib.vhb_queue_set_inflight(self.handle, region, length, size), "inflight region")

    def set_kick(self, fd: int | None) -> None:
        """Take over an eventfd; None: the ring is polled."""
        self._set_fd("kick", fd)

    def set_call(self, fd: int | None) -> None:
        """Take over an eventfd; None: the driver is never called."""
        self._set_fd("call", fd)

    def set_err(self, fd: int | None) -> None:
        """Take over an eventfd that is written when the queue breaks."""
        self._set_fd("err", fd)

    def _set_fd(self, kind: str, fd: int | None) -> None:
        if fd is not None:
            os.set_blocking(fd, False)
        setter = getattr(lib, f"vhb_queue_set_{kind}")
        check(setter(self.handle, -1 if fd is None else fd), f"{kind} fd")
        old = self._fds.pop(kind, None)
        if old is not None:
            os.close(old)
        if fd is not None:
            self._fds[kind] = fd

    def eventfds(self) -> Mapping[str, int]:
        """Return those it has."""
        return dict(self._fds)

    def set_enabled(self, *, enabled: bool) -> None:
        """Say whether the queue may take new requests."""
        check(lib.vhb_queue_set_enabled(self.handle, enabled), "enable")

    def set_features(self, features: int) -> None:
        """Set the feature bits the driver acked."""
        check(lib.vhb_queue_set_features(self.handle, features), "features")

    def set_blk(self, blk: BlkDevice, *, writethrough: bool) -> None:
        """Set what requests are checked against."""
        flags = {
            lib.VHB_BLK_READ_ONLY: blk.read_only,
            lib.VHB_BLK_WRITETHROUGH: writethrough,
            lib.VHB_BLK_DISCARD: blk.discard,
            lib.VHB_BLK_WRITE_ZEROES: blk.write_zeroes,
            lib.VHB_BLK_UNMAP: blk.may_unmap,
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
        value = ffi.new("struct vhb_blk *", settings)
        check(lib.vhb_queue_set_blk(self.handle, value), "device settings")

    def set_on_error(
        self,
        policy: OnError,
        *,
        on_stalled: Callable[[Stall], None],
        on_failed: Callable[[Stall], None] | None = None,
    ) -> None:
        """Say what becomes of a request that the disk fails."""
        check(lib.vhb_queue_set_on_error(self.handle, _POLICIES[policy]), "on error")
        self._on_stalled, self._on_failed = on_stalled, on_failed

    def resume(self) -> None:
        """Try what is held again."""
        if self._last is None:
            lib.vhb_queue_resume(self.handle)

    def stall(self) -> Stall | None:
        """Return the error that has stopped the queue."""
        return None if self._last is not None else take_note(self.handle, lib.vhb_queue_stall)

    def latency(self) -> Mapping[Op, Latency]:
        """Return how long requests took, by kind."""
        return latency(self.handle) if self._last is None else self._last[2]

    def slow(self, seconds: float) -> list[Slow]:
        """Return the requests that have been under way for so long."""
        return slow(self.handle, seconds) if self._last is None else []

    def watch_busy(self, on_busy: Callable[[], None] | None) -> None:
        """Be told once that a request was taken."""
        self._on_busy = on_busy
        if self._last is None:
            lib.vhb_queue_watch_busy(self.handle, on_busy is not None)

    def set_log(self, log: DirtyLog | None) -> None:
        """Mark what is written from the next run on."""
        self._log = log
        if log is None:
            check(lib.vhb_queue_set_log(self.handle, ffi.NULL, 0, ffi.NULL, 0, 0), "dirty log")
            return
        rows = [(ffi.cast("void *", one.host), one.length, one.gpa) for one in log.regions]
        table = ffi.new("struct vhb_log_region[]", rows)
        used = lib.VHB_LOG_USED_NOT if log.used_gpa is None else log.used_gpa
        bits = ffi.cast("void *", log.address), log.length
        check(lib.vhb_queue_set_log(self.handle, *bits, table, len(rows), used), "dirty log")

    def set_sampling(
        self, *, first: int, every: int, on_samples: Callable[[], None] | None
    ) -> None:
        """Begin a new count of chains, and say which are sampled."""
        check(lib.vhb_queue_set_sampling(self.handle, first, every), "sampling")
        self._on_samples = on_samples

    def condemn(self, why: str) -> None:
        """Break the queue."""
        if self.fault() is None:
            self._condemned_for = why
        check(lib.vhb_queue_condemn(self.handle), "condemn")

    def watch_use(self, memory: Sequence[Piece]) -> None:
        """Say what `unused` waits for."""
        table = pieces_table(memory)
        check(lib.vhb_queue_watch_use(self.handle, table, len(memory)), "memory in use")

    async def unused(self) -> None:
        """Wait until what was in flight does not use that memory any more."""
        await self._until(lambda: not lib.vhb_queue_in_use(self.handle))

    # ---- ownership ------------------------------------------------------------------------

    def run(self) -> None:
        """Hand the ring to the worker."""
        check(lib.vhb_queue_run(self.handle), "ring")

    async def parked(self) -> None:
        """Get the ring back between two requests."""
        if self._ours():
            return
        check(lib.vhb_queue_park(self.handle), "park")
        await self._until(self._ours)

    async def drained(self, *, seconds: float) -> int:
        """Get the ring back with nothing in flight; how many requests are dead."""
        check(lib.vhb_queue_drain(self.handle), "drain")
        try:
            async with asyncio.timeout(seconds):
                await self._until(self._ours)
        except TimeoutError:
            check(lib.vhb_queue_cancel(self.handle), "cancel")
            await self._until(self._ours)
        return self.counters().dead

    def _ours(self) -> bool:
        return cast("int", lib.vhb_queue_base(self.handle, self._base)) == 0

    async def _until(self, done: Callable[[], bool]) -> None:
        """Wait for the worker; what it says may be about something older, so look again."""
        while not done():
            self._news.clear()
            await self._news.wait()

    def on_events(self, events: int) -> None:
        """Hand out what the worker posted; on the control thread."""
        if events & lib.VHB_DETACHED:
            self._detached = True
        if events:
            self._news.set()
        if events & lib.VHB_SAMPLED and self._on_samples is not None:
            self._on_samples()
        if events & lib.VHB_BROKEN:
            self._on_broken()
        if events & lib.VHB_MISS:
            self._missed()
        if events & lib.VHB_STALLED:
            self._tell(self._on_stalled, lib.vhb_queue_stall)
        if events & lib.VHB_FAILED:
            self._tell(self._on_failed, lib.vhb_queue_failure)
        if events & lib.VHB_BUSY and self._on_busy is not None:
            self._on_busy()

    def _tell(self, tell: Callable[[Stall], None] | None, take: Take) -> None:
        note = take_note(self.handle, take)
        if note is not None and tell is not None:
            tell(note)

    def _missed(self) -> None:
        out = ffi.new("struct vhb_miss *")
        if self._on_miss is not None and lib.vhb_queue_miss(self.handle, out):
            self._on_miss(Miss(out.iova, out.len, Access(out.access), out.index))

    # ---- what can be asked ----------------------------------------------------------------

    def fault(self) -> Fault | None:
        """Return why the queue is broken, None while it is not."""
        if self._last is not None:
            return self._last[1]
        out = ffi.new("struct vhb_fault *")
        lib.vhb_queue_fault(self.handle, out)
        if out.reason == lib.VHB_OK:
            return None
        reason = Reason(out.reason)
        text = self._condemned_for if reason is Reason.CONDEMNED else reason.text
        return Fault(text, out.index, out.value)

    def counters(self) -> Counters:
        """Return what the queue has counted."""
        if self._last is not None:
            return self._last[0]
        out = ffi.new("struct vhb_counters *")
        lib.vhb_queue_counters(self.handle, out)
        return Counters(**{field.name: getattr(out, field.name) for field in fields(Counters)})

    def samples(self) -> list[Sample]:
        """Return the samples there are, and forget them."""
        return [] if self._last is not None else take_samples(self.handle)

    async def move(self, worker: Worker) -> None:
        """Have another worker serve it; it is drained, none is dead, and nobody asks meanwhile."""
        check(lib.vhb_queue_detach(self.handle), "detach")
        await self._until(lambda: self._detached)
        self._detached = False
        self._worker.drop(self)
        check(lib.vhb_queue_attach(self.handle, worker.handle), "attach")
        self._worker = worker
        worker.take(self)
        self.set_log(self._log)  # the core forgot it: nobody was to write there

    async def close(self) -> None:
        """Forget the ring and close its eventfds; waits for dead requests in the background."""
        if self._closed:
            return
        self._closed = True
        await self.drained(seconds=0)  # parked is not enough
        check(lib.vhb_queue_detach(self.handle), "detach")
        if self.counters().dead:
            self._device.wait_for_dead(asyncio.ensure_future(self._forgotten()))
            return
        await self._forgotten()

    async def _forgotten(self) -> None:
        await self._until(lambda: self._detached)
        self._worker.drop(self)
        self._device.forget(self)
        for fd in self._fds.values():
            os.close(fd)
        self._last = self.counters(), self.fault(), self.latency()
        check(lib.vhb_queue_free(self.handle), "free")
        self._layers.free()
