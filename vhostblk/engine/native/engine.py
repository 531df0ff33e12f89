"""Workers and what the queues of one disk share."""

import asyncio
import logging
import os
from collections.abc import Callable, Sequence

from vhostblk.disk.api import Disk
from vhostblk.disk.stage import split
from vhostblk.engine.api import Driven, Queue, Ways
from vhostblk.engine.cpus import check_cpus
from vhostblk.engine.native.core import check, ffi, lib, make
from vhostblk.engine.native.disks import Bottom
from vhostblk.engine.native.driven import drive
from vhostblk.engine.native.queue import NativeQueue
from vhostblk.engine.native.stages import Layers, NativeStage, bind
from vhostblk.engine.native.table import Tables
from vhostblk.engine.native.worker import Worker
from vhostblk.engine.poll import Poll
from vhostblk.engine.told import WorkerStatus
from vhostblk.errors import VhostBlkError
from vhostblk.spec.virtio_ring import (
    F_EVENT_IDX,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_RING_RESET,
)

_log = logging.getLogger(__name__)


class NativeDevice:
    """
    `DeviceEngine`: what the queues of one disk share.

    Its layers that are stages stand in front of the disk itself, if the core serves that, else in
    front of each queue's mailbox.
    """

    def __init__(self, engine: "NativeEngine", disk: Disk) -> None:
        self._engine = engine
        layers, below = split(disk)
        self.stages: Sequence[NativeStage] = bind(layers)
        self._bottom = Bottom.of(below)
        self._layers = None if self._bottom is None else Layers(self.stages, self._bottom.disk)
        self.disk = None if self._layers is None else self._layers.disk
        self.graveyard = make("graveyard", lib.vhb_graveyard_new)
        self.tables = Tables()
        self._queues: set[NativeQueue] = set()
        self._late: set[asyncio.Future[None]] = set()

    def queue(self, index: int, *, on_broken: Callable[[], None]) -> NativeQueue:
        """Make queue *index*, on the worker that has least to do."""
        queue = NativeQueue(self._engine.worker(), self, on_broken)
        check(lib.vhb_queue_set_number(queue.handle, index), "number")
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

    def ways(self) -> Ways | None:
        """Return which way reads and writes of a file take."""
        return None if self._bottom is None else self._bottom.ways()

    async def close(self) -> None:
        """Let go of the disk; what dead requests still use is left to the process's end."""
        if self._late:
            _log.error("%d cancelled requests never came back from the disk", self.dead())
            for freed in self._late:
                freed.cancel()
            return
        if self._layers is not None and self._bottom is not None:
            self._layers.free()
            self._bottom.free()
        check(lib.vhb_graveyard_free(self.graveyard), "graveyard")


class NativeEngine:
    """
    `Engine`: workers, made as queues need them, one per queue up to the number of CPUs.

    Args:
        workers: How many at most; None: as many as *cpus*, or as this process may use.
        poll: How long each looks on before it sleeps.
        cpus: The CPU of each, in their order; none: they run on any.
        threaded: Each works on a thread of its own; without it only `step` works.

    Raises:
        VhostBlkError: One of *cpus* is not there, or not for this process.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        poll: Poll | None = None,
        cpus: Sequence[int] = (),
        threaded: bool = True,
    ) -> None:
        usable = os.sched_getaffinity(0)
        check_cpus(cpus, usable)
        self._poll = poll or Poll()
        self._cpus = cpus
        self._limit = workers or len(cpus or usable)
        self._threaded = threaded
        self._workers: list[Worker] = []
        check(lib.vhb_fault_install(), "SIGBUS handler")

    @property
    def name(self) -> str:
        """``native``."""
        return "native"

    @property
    def ring_features(self) -> int:
        """Ring feature bits it can."""
        return F_INDIRECT_DESC | F_EVENT_IDX | F_RING_PACKED | F_IN_ORDER | F_RING_RESET

    @property
    def can_inflight(self) -> bool:
        """Whether its queues can keep an inflight region."""
        return True

    @property
    def can_log(self) -> bool:
        """It has an atomic OR."""
        return True

    def drive(self, disk: object) -> Sequence[Driven]:
        """Have layers in Python call the core, where a layer of it is below them."""
        return drive(disk)

    def device(self, disk: Disk) -> NativeDevice:
        """Get ready to serve an open *disk*."""
        return NativeDevice(self, disk)

    def guard(self, host: int, length: int, page: int) -> Callable[[], None]:
        """Survive guest memory that vanishes under a mapping."""
        slot = check(lib.vhb_fault_watch(ffi.cast("void *", host), length, page), "guard")

        def end() -> None:
            check(lib.vhb_fault_unwatch(slot), "guard")

        return end

    def worker(self) -> Worker:
        """Return the worker with the fewest queues, whatever devices those are of."""
        least = min(self._workers, key=lambda one: len(one.queues), default=None)
        if least is None or (least.queues and len(self._workers) < self._limit):
            return self._begin()
        return least

    def workers(self) -> Sequence[WorkerStatus]:
        """Return what each worker is and has done."""
        return [worker.status() for worker in self._workers]

    async def move(self, queue: Queue, worker: int | None) -> int:
        """Have another worker serve a drained queue."""
        if not isinstance(queue, NativeQueue):
            raise TypeError(f"{queue!r} is a queue of another engine")
        if worker is not None and not 0 <= worker < self._limit:
            most = self._limit - 1
            raise VhostBlkError(f"there is no worker {worker}: there are 0 to {most}")
        target = self._lighter(queue.worker) if worker is None else self._numbered(worker)
        if target.index != queue.worker:
            await queue.move(target)
        return target.index

    def _lighter(self, than: int) -> Worker:
        """Return a worker that has less to do even with one queue more, or the one there is."""
        own = self._workers[than]
        best = self.worker() if len(own.queues) > 1 else own
        return best if len(best.queues) + 1 < len(own.queues) else own

    def _numbered(self, number: int) -> Worker:
        while len(self._workers) <= number:
            self._begin()
        return self._workers[number]

    def _begin(self) -> Worker:
        loop, index = asyncio.get_running_loop(), len(self._workers)
        cpu = self._cpus[index] if self._cpus else None
        worker = Worker(index, loop, self._poll, cpu=cpu, threaded=self._threaded)
        self._workers.append(worker)
        return worker

    def step(self) -> int:
        """Make one pass of every worker that never blocks; how much was done."""
        return sum(check(lib.vhb_worker_step(worker.handle), "step") for worker in self._workers)

    async def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            await worker.close()
        self._workers.clear()
