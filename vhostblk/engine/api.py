"""
What a data plane is: queues that belong to somebody, and disks at their other end.

A queue's ring and settings belong either to its worker or to the control plane.  Setters and
`Queue.base` need it parked or drained and raise `Busy` otherwise; `run` hands it over,
`parked` and `drained` ask for it back.  *Adding needs parked; removing needs drained.*

All methods are called on the control thread, inside its running asyncio loop.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from vhostblk.blk.device import BlkDevice
from vhostblk.disk.api import Disk
from vhostblk.engine.device import DeviceEngine, Driven
from vhostblk.engine.errors import Busy, OnError, Stall
from vhostblk.engine.job import Job, Mailbox
from vhostblk.engine.latency import Latency, Slow
from vhostblk.engine.op import Op
from vhostblk.engine.told import Counters, Fault, Miss, Way, Ways, WorkerCounters, WorkerStatus
from vhostblk.memory.dirty import DirtyLog
from vhostblk.memory.sample import Sample
from vhostblk.memory.space import Segment

__all__ = [
    "Busy",
    "Counters",
    "DeviceEngine",
    "Driven",
    "Engine",
    "Fault",
    "Job",
    "Latency",
    "Mailbox",
    "Miss",
    "OnError",
    "Op",
    "Piece",
    "Queue",
    "Slow",
    "Stall",
    "Way",
    "Ways",
    "WorkerCounters",
    "WorkerStatus",
]

Piece = tuple[int, int]
"""(host address, length in bytes) of a part of a ring."""


class Queue(Protocol):
    """A virtqueue and the requests in flight behind it."""

    @property
    def mailbox(self) -> Mailbox | None:
        """Where this queue's jobs wait; None where the engine serves the disk itself."""
        ...

    @property
    def worker(self) -> int:
        """Which of the engine's workers serves it."""
        ...

    def set_space(self, segments: Sequence[Segment]) -> None:
        """
        Point the queue at new segments, sorted and disjoint.

        Their mappings must outlive the next `drained` and every dead request.
        """
        ...

    def set_ask(self, on_miss: Callable[[Miss], None] | None) -> None:
        """
        Say what becomes of an address that is in no segment.

        A chain that needs one waits, and with it all behind it; what is in flight completes.
        `set_space` or `deny`, and `run`, go on; a miss may repeat.  One that was answered
        before it was told is not told.

        Args:
            on_miss: Called on the control thread when a chain needs one.  None: it is denied, as
                is in any case what is in a segment that allows nothing.
        """
        ...

    def deny(self, iova: int, length: int) -> None:
        """
        Deny a range to the chain that waits for it, and to no other.

        Its request fails; without its status byte or its indirect table the queue breaks.
        """
        ...

    def set_ring(
        self, *, size: int, desc: Sequence[Piece], avail: Sequence[Piece], used: Sequence[Piece]
    ) -> None:
        """
        Say where the ring lives.

        Args:
            size: Descriptors, up to 1024; of a split ring a power of two.
            desc: Pieces of the descriptor table or ring, 16 * size bytes or more.
            avail: Pieces of the avail ring, 6 + 2 * size bytes or more; packed: the driver's
                event suppression, 4 bytes.
            used: Pieces of the used ring, 6 + 8 * size bytes or more; packed: the device's.

        What does not fit the format is refused here, or at `run` at the latest.
        """
        ...

    def set_base(self, base: int) -> None:
        """
        Set where the ring goes on, from the next `run`.

        Args:
            base: As on the wire.  Split: the next avail entry to take; the used index is the
                ring's own.  Packed: bits 0-14 the next descriptor to take, 15 its wrap counter,
                16-31 the same of the next one to use.
        """
        ...

    def base(self) -> int:
        """Return where the ring goes on, in the form of `set_base`."""
        ...

    def set_inflight(self, memory: Piece | None, *, size: int) -> None:
        """
        Say where is noted what is taken and not yet given back, so that a successor finds it.

        Args:
            memory: The region of this queue: mapped by the caller, watched for vanished memory,
                aligned to 8 bytes; None: nothing is noted any more.
            size: Descriptors it is for, as the front-end says; the ring may be smaller.

        It is looked at by the first `run` behind a `set_base`.  One that nobody has written to is
        made; what a predecessor left in one is taken again, in its order and before anything new,
        and `base` is where he had come to.  A drain takes what is left of that, too, until it is
        over, misses, or its time is up; the rest stays in the region.  One that cannot be a region
        breaks the queue.  One that is too short is refused at `run` at the latest.
        """
        ...

    def set_kick(self, fd: int | None) -> None:
        """Take over an eventfd (made non-blocking); None: the ring is polled."""
        ...

    def set_call(self, fd: int | None) -> None:
        """Take over an eventfd; None: the driver is never called."""
        ...

    def set_err(self, fd: int | None) -> None:
        """Take over an eventfd that is written when the queue breaks."""
        ...

    def eventfds(self) -> Mapping[str, int]:
        """Return those it has, by ``kick``, ``call`` and ``err``; they stay the queue's."""
        ...

    def set_enabled(self, *, enabled: bool) -> None:
        """Say whether the queue may take new requests; a disabled one still completes."""
        ...

    def set_features(self, features: int) -> None:
        """Set the feature bits the driver acked."""
        ...

    def set_blk(self, blk: BlkDevice, *, writethrough: bool) -> None:
        """Set what requests are checked against, and whether every write must be stable."""
        ...

    def set_on_error(
        self,
        policy: OnError,
        *,
        on_stalled: Callable[[Stall], None],
        on_failed: Callable[[Stall], None] | None = None,
    ) -> None:
        """
        Say what becomes of a request that the disk fails.

        Args:
            policy: What is held when it fails from now on.
            on_stalled: Called on the control thread with the first error of each stall.  Nothing
                new is taken until `resume`; what is with the disk goes on, and is held too if it
                fails.  What is held is in flight: `drained` waits for it.
            on_failed: Called on the control thread with errors that the driver was told of; not
                with each where they are many.
        """
        ...

    def resume(self) -> None:
        """Try what is held again, in the order in which it failed, and go on; at any time."""
        ...

    def stall(self) -> Stall | None:
        """Return the error that has stopped the queue, None while it runs."""
        ...

    def latency(self) -> Mapping[Op, Latency]:
        """
        Return how long requests took, by kind; at any time.

        Of those that reached the disk, from the moment they were taken to their used element; the
        time that one was held for an error is in it.
        """
        ...

    def slow(self, seconds: float) -> list[Slow]:
        """Return the requests that have been under way for so long; at any time."""
        ...

    def watch_busy(self, on_busy: Callable[[], None] | None) -> None:
        """
        Be told that a request was taken: once, then not again until this is called again.

        So that who looks at `slow` now and then need not look at a queue that is idle.  A request
        that is taken at this very moment may be missed.  At any time.
        """
        ...

    def set_log(self, log: DirtyLog | None) -> None:
        """
        Mark what is written in guest memory from the next `run` on, None: mark nothing.

        What is in flight then is marked when it is given back.  Only where `Engine.can_log`; the
        log's memory is to be guarded, as guest memory is: when it vanishes the queue breaks.
        """
        ...

    def set_sampling(
        self, *, first: int, every: int, on_samples: Callable[[], None] | None
    ) -> None:
        """
        Begin a new count of chains, and forget the samples that were not taken.

        Args:
            first: So many chains are all sampled: while there is no room the queue pops nothing.
                Only of one with more than 4096 descriptors the rest is lost.
            every: Then one chain in so many is, where there is room; 0: none.
            on_samples: Called on the control thread when the first chains are complete, when the
                room is half used, and when a descriptor is outside; then not again until `samples`
                was called.

        A descriptor that is denied or NOTED is sampled in every chain, where there is room.  In a
        chain that is seen to be no request, what follows is not looked at.
        """
        ...

    def samples(self) -> list[Sample]:
        """Take the samples there are, the oldest first; legal at any time."""
        ...

    def condemn(self, why: str) -> None:
        """
        Break a queue that is parked or drained, as a ring that is none would.

        Args:
            why: The fault's reason, where it has none yet.
        """
        ...

    def watch_use(self, memory: Sequence[Piece]) -> None:
        """Say what `unused` waits for: host memory that may go, sorted and disjoint."""
        ...

    async def unused(self) -> None:
        """
        Wait until nothing uses that memory that was in flight, or dead, at `watch_use`.

        What is taken later is not waited for: the ring may run meanwhile.
        """
        ...

    def run(self) -> None:
        """Hand the ring to the worker, which looks at it at once."""
        ...

    async def parked(self) -> None:
        """Get the ring back between two requests; I/O may be in flight.  Idempotent."""
        ...

    async def drained(self, *, seconds: float) -> int:
        """
        Get the ring back with nothing in flight.

        Args:
            seconds: When it takes longer, what is left is cancelled and completes with IOERR.

        Returns:
            Requests that are dead: cancelled, but still with the disk.
        """
        ...

    def fault(self) -> Fault | None:
        """Return why the queue is broken, None while it is not."""
        ...

    def counters(self) -> Counters:
        """Return what the queue has counted; legal at any time."""
        ...

    async def close(self) -> None:
        """Cancel what is in flight, close the eventfds; the queue is not used afterwards."""
        ...


class Engine(Protocol):
    """A data plane; one serves any number of devices."""

    @property
    def name(self) -> str:
        """``native`` or ``reference``."""
        ...

    @property
    def ring_features(self) -> int:
        """Ring feature bits it can, for `vhostblk.blk.features.offered`."""
        ...

    @property
    def can_inflight(self) -> bool:
        """Whether its queues can keep an inflight region."""
        ...

    @property
    def can_log(self) -> bool:
        """Whether its queues can mark a dirty log."""
        ...

    def drive(self, disk: object) -> Sequence[Driven]:
        """
        Have what layers in Python call be the engine's, where it runs what is below them.

        Called with each disk once before it is opened; there are none where no layer is below a
        layer in Python.

        Raises:
            VhostBlkError: It has a layer that this engine cannot run.
        """
        ...

    def device(self, disk: Disk) -> DeviceEngine:
        """Get ready to serve an open *disk*; its queues share what a device shares."""
        ...

    def guard(self, host: int, length: int, page: int) -> Callable[[], None]:
        """
        Survive guest memory that vanishes under a mapping (SIGBUS), where the engine can.

        Args:
            host: First byte of the mapping.
            length: Bytes.
            page: Bytes of one of its pages.

        Returns:
            What ends the guard; to be called before the mapping goes.
        """
        ...

    def workers(self) -> Sequence[WorkerStatus]:
        """Return what each of its workers is and has done, by number; legal at any time."""
        ...

    async def move(self, queue: Queue, worker: int | None) -> int:
        """
        Have another worker serve a queue, which is drained and stays so; nobody asks it meanwhile.

        Args:
            queue: Of this engine; no request of it is dead.
            worker: Its number; None: one that has less to do, where there is one.

        Returns:
            The number of the one that serves it then.

        Raises:
            VhostBlkError: There is no such worker.
        """
        ...

    async def close(self) -> None:
        """End the workers; every queue was closed before."""
        ...
