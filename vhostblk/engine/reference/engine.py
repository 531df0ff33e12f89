"""The reference engine: one worker thread for all queues of all devices."""

import asyncio
import logging
import select
import threading
from collections.abc import Callable, Sequence

from vhostblk.disk.api import Disk
from vhostblk.disk.layer import layers
from vhostblk.disk.stage import StageLayer
from vhostblk.engine.api import Driven, Fault, Queue
from vhostblk.engine.reference.graveyard import Graveyard
from vhostblk.engine.reference.mailbox import Bell
from vhostblk.engine.reference.queue import ReferenceQueue
from vhostblk.engine.told import WorkerStatus
from vhostblk.errors import VhostBlkError
from vhostblk.spec.virtio_ring import F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, F_RING_RESET

TICK_MS = 1
"""How soon a ring is looked at again while requests are outstanding: without a full fence a kick
that crosses our going to sleep could be lost."""

_log = logging.getLogger(__name__)


class Worker:
    """
    Visits queues.

    Its own thread's alone but for `wake`, `add` and `stop`.
    """

    def __init__(self) -> None:
        self._bell = Bell()
        self._lock = threading.Lock()
        self._queues: tuple[ReferenceQueue, ...] = ()
        self._stopping = False

    def wake(self) -> None:
        """Make the worker visit its queues; any thread."""
        self._bell.ring()

    def add(self, queue: ReferenceQueue) -> None:
        """Visit *queue* from now on, until it is finished."""
        with self._lock:
            self._queues = (*self._queues, queue)

    def stop(self) -> None:
        """End `run` after its pass; any thread."""
        self._stopping = True
        self.wake()

    def run(self) -> None:
        """Serve until stopped."""
        idle = 0
        while not self._stopping:
            idle = 0 if self.step(self._timeout(idle)) else idle + 1

    def _timeout(self, idle: int) -> int | None:
        """Return how long to wait for an event, milliseconds, after *idle* passes for nothing."""
        if idle == 0:
            return 0
        # One more look after a while even where nothing is outstanding: see TICK_MS.
        return TICK_MS if idle == 1 or any(q.restless for q in self._queues) else None

    def step(self, timeout: int | None = 0) -> int:
        """
        Wait for events, then visit every queue once.

        Args:
            timeout: Milliseconds; None: until there is one.

        Returns:
            How many requests were popped, pushed or came back.
        """
        self._wait(timeout)
        n = sum(_visit(queue) for queue in self._queues)
        if any(queue.finished for queue in self._queues):
            with self._lock:
                self._queues = tuple(q for q in self._queues if not q.finished)
        return n

    def _wait(self, timeout: int | None) -> None:
        # poll, not epoll: a front-end may hand us any kind of file as its eventfd.
        poller = select.poll()
        poller.register(self._bell.fileno(), select.POLLIN)
        kicks = {}
        for queue in self._queues:
            fd = queue.kick_fd()
            if fd is not None:
                poller.register(fd, select.POLLIN)
                kicks[fd] = queue
        for fd, _ in poller.poll(timeout):
            if fd in kicks:
                kicks[fd].kicked()
            else:
                self._bell.clear()


def _nothing() -> None:
    """End a guard that is none."""


def _visit(queue: ReferenceQueue) -> int:
    try:
        return queue.visit()
    except Exception:  # noqa: BLE001 - our bug, whichever: other queues and all drains must go on
        _log.exception("reference engine: queue %d is given up", queue.index)
        queue.give_up(Fault("error in the engine", 0, 0))
        return 0


class ReferenceEngine:
    """
    The `Engine` in Python.

    Every disk is served through mailboxes.  It cannot EVENT_IDX: without a full fence a
    notification could be lost for good.

    Args:
        threaded: False: nothing happens but in `step`, for tests.
    """

    def __init__(self, *, threaded: bool = True) -> None:
        self._worker = Worker()
        self._thread: threading.Thread | None = None
        self._threaded = threaded

    @property
    def name(self) -> str:
        """``reference``."""
        return "reference"

    @property
    def ring_features(self) -> int:
        """Ring feature bits it can."""
        return F_INDIRECT_DESC | F_RING_PACKED | F_IN_ORDER | F_RING_RESET

    @property
    def can_inflight(self) -> bool:
        """Whether its queues can keep an inflight region."""
        return True

    @property
    def can_log(self) -> bool:
        """Python has no atomic OR."""
        return False

    def drive(self, disk: object) -> Sequence[Driven]:
        """Refuse layers that the C core runs."""
        for layer in layers(disk):
            if isinstance(layer, StageLayer):
                raise VhostBlkError(
                    f"layer {layer.name} needs the native engine (the compiled core): serve with "
                    "that, or leave out the layer"
                )
        return ()

    def device(self, disk: Disk) -> "ReferenceDevice":
        """Get ready to serve an open *disk*."""
        if self._threaded and self._thread is None:
            self._thread = threading.Thread(
                target=self._worker.run, name="vhostblk-reference", daemon=True
            )
            self._thread.start()
        return ReferenceDevice(self._worker, disk)

    def guard(self, host: int, length: int, page: int) -> Callable[[], None]:  # noqa: ARG002
        """Guard nothing: a SIGBUS cannot be caught in Python, it ends the process."""
        return _nothing

    def workers(self) -> Sequence[WorkerStatus]:
        """Count nothing: it polls nothing."""
        return ()

    async def move(self, queue: Queue, worker: int | None) -> int:  # noqa: ARG002
        """Leave a queue where it is: there is one worker."""
        if worker:
            raise VhostBlkError(f"there is no worker {worker}: the reference engine has one, 0")
        return 0

    def step(self) -> int:
        """One pass of the worker that never blocks; only where there is no thread."""
        return self._worker.step()

    async def close(self) -> None:
        """End the worker."""
        self._worker.stop()
        if self._thread is not None:
            # It ends after the pass it is in, which waits for nothing.
            self._thread.join()
            self._thread = None


class ReferenceDevice:
    """
    The `DeviceEngine` in Python.

    Args:
        worker: Who visits its queues.
        disk: Held while the device is served; the jobs are the pump's to do.
    """

    def __init__(self, worker: Worker, disk: Disk) -> None:
        self._worker = worker
        self._disk: Disk | None = disk
        self._graveyard = Graveyard()

    def queue(self, index: int, *, on_broken: Callable[[], None]) -> ReferenceQueue:
        """Make a queue, parked, at base 0 and without a ring."""
        queue = ReferenceQueue(
            index,
            loop=asyncio.get_running_loop(),
            wake=self._worker.wake,
            graveyard=self._graveyard,
            on_broken=on_broken,
        )
        self._worker.add(queue)
        return queue

    def dead(self) -> int:
        """Return how many cancelled requests are still with the disk."""
        return self._graveyard.count()

    def ways(self) -> None:
        """Say that it serves no file by itself: Python does."""

    async def close(self) -> None:
        """Let go of the disk."""
        self._disk = None
