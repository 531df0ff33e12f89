"""
Rings made of plain bytes, driven against any engine through engine/api.py only.

A `Rig` is an engine without a thread, a device, guest memory and a disk of bytes; a `Lane` is one
queue of it.  Nothing happens but in `Rig.pump` and its kind.
"""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from engine.driver import GPA, Lane, Memory, Ring
from engine.driver_packed import PackedDriver
from engine.driver_split import SplitDriver
from engine.region import Region

from vhostblk.blk.device import BlkDevice
from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.engine.api import Engine, Fault, Job, Op, Queue
from vhostblk.spec.virtio_ring import F_IN_ORDER, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1

LANE = 64 << 10
SECTORS = 4096
FEATURES = F_VERSION_1 | F_INDIRECT_DESC

BLK = BlkDevice(
    capacity_sectors=SECTORS,
    discard=True,
    max_discard=1 << 20,
    write_zeroes=True,
    may_unmap=True,
    max_write_zeroes=1 << 20,
    serial=b"harness",
)

T = TypeVar("T")


class SteppedEngine(Engine, Protocol):
    """An engine that works only when told."""

    def step(self) -> int:
        """One pass that never blocks; how much was done."""
        ...


class Nowhere(Disk):
    """Gives a device its shape; the rig serves the jobs itself."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=SECTORS * 512)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        raise AssertionError(offset, views)


class Rig:
    """
    An engine that is stepped by hand, one device, a disk of bytes.

    Args:
        make: What makes the engine.
        packed: The rings of its lanes are.
    """

    def __init__(self, make: Callable[[], SteppedEngine], *, packed: bool = False) -> None:
        self.packed = packed
        self.loop = asyncio.new_event_loop()
        self.memory = Memory()
        self.disk = bytearray(SECTORS * 512)
        self.jobs: list[Job] = []
        self.fail: Callable[[Job], int] = lambda _: 0
        self.engine = self.call(make)
        self.device = self.call(lambda: self.engine.device(Nowhere()))
        self.lanes: list[Lane] = []

    def call(self, what: Callable[[], T]) -> T:
        """Do something on the control thread, inside the loop."""

        async def inside() -> T:
            return what()

        return self.loop.run_until_complete(inside())

    def lane(  # noqa: PLR0913 - a queue has many settings
        self,
        *,
        size: int = 16,
        features: int = FEATURES,
        blk: BlkDevice = BLK,
        writethrough: bool = False,
        run: bool = True,
        ring: Ring | None = None,
        region: Region | None = None,
    ) -> Lane:
        """
        Make a queue with a ring, enabled, and hand it over.

        Args:
            size: Of a new ring.
            features: Acked.
            blk: What is promised.
            writethrough: Writes are stable at once.
            run: Hand it over.
            ring: The driver of a ring that goes on, in place of a new one.
            region: Where what is taken is noted.
        """
        features |= F_RING_PACKED * self.packed
        if ring is None:
            driver = PackedDriver if self.packed else SplitDriver
            at = GPA + LANE * len(self.lanes)
            ring = driver(self.memory, at, size, in_order=features & F_IN_ORDER != 0)
        broken: list[Fault | None] = []
        index = len(self.lanes)
        queue = self.call(
            lambda: self.device.queue(index, on_broken=lambda: broken.append(queue.fault()))
        )
        kick, call, err = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
        lane = Lane(self.memory, queue, ring, kick, call, err, features, broken)
        self.lanes.append(lane)

        def set_up() -> None:
            queue.set_space([self.memory.segment()])
            queue.set_features(features)
            queue.set_ring(size=ring.size, **lane.place())
            queue.set_base(ring.begin())
            if region is not None:
                queue.set_inflight(region.piece, size=region.entries)
            queue.set_kick(os.dup(kick))
            queue.set_call(os.dup(call))
            queue.set_err(os.dup(err))
            queue.set_blk(blk, writethrough=writethrough)
            queue.set_enabled(enabled=True)
            if run:
                queue.run()

        self.call(set_up)
        if run:
            self.step()
            lane.rings(call)  # a new call fd is written once
        return lane

    def turn(self) -> int:
        """One turn of the control loop and one pass of the engine."""
        self.loop.run_until_complete(asyncio.sleep(0))
        return self.engine.step()

    def step(self) -> None:
        """Let the engine work until it has nothing to do; nobody serves the disk."""
        idle = 0
        for _ in range(1000):
            idle = 0 if self.turn() else idle + 1
            if idle == 3:
                return
        raise AssertionError("the engine never rests")

    def take(self, lane: Lane) -> list[Job]:
        """Take the jobs of a lane without doing them."""
        jobs = lane.mailbox.take()
        self.jobs += jobs
        return jobs

    def serve(self) -> int:
        """Do all jobs that wait; return how many."""
        jobs = [(lane, job) for lane in self.lanes for job in self.take(lane)]
        for lane, job in jobs:
            if job.op is not Op.CANCEL:
                self.finish(lane, job)
        return len(jobs)

    def finish(self, lane: Lane, job: Job) -> None:
        """Do one job, and complete it."""
        error = self.fail(job) or self._do(job)
        assert job.release()
        lane.mailbox.complete([(job.tag, error)])

    def finish_together(self, lane: Lane) -> None:
        """End all jobs that wait, for one visit to find."""
        done = [(job, self._do(job)) for job in self.take(lane)]
        assert all(job.release() for job, _ in done)
        lane.mailbox.complete([(job.tag, error) for job, error in done])

    def _do(self, job: Job) -> int:
        position = job.offset
        for view in job.views:
            end = position + len(view)
            if job.op is Op.READ:
                view[:] = self.disk[position:end]
            else:
                self.disk[position:end] = view
            position = end
        if job.op in (Op.DISCARD, Op.WRITE_ZEROES):
            self.disk[job.offset : job.offset + job.length] = bytes(job.length)
        return 0 if position <= len(self.disk) else errno.EIO

    def pump(self) -> None:
        """Let engine and disk work until neither has anything to do."""
        self.step()
        while self.serve():
            self.step()

    def start(self, awaitable: Awaitable[T]) -> asyncio.Task[T]:
        """Begin to await something of the control plane."""

        async def inside() -> T:
            return await awaitable

        task = self.loop.create_task(inside())
        self.loop.run_until_complete(asyncio.sleep(0))
        return task

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Await something of the control plane while the engine works, without the disk."""
        task = self.start(awaitable)
        for _ in range(1000):
            if task.done():
                return task.result()
            self.turn()
        raise AssertionError("the control plane waits for ever")

    def park(self, lane: Lane) -> None:
        self.wait(lane.queue.parked())

    def drain(self, lane: Lane, *, seconds: float = 5) -> int:
        return self.wait(lane.queue.drained(seconds=seconds))

    def set(self, lane: Lane, change: Callable[[Queue], object]) -> None:
        """Park, change something, run again."""
        self.park(lane)
        self.call(lambda: change(lane.queue))
        self.call(lane.queue.run)

    def close(self) -> None:
        """Return everything, in order; nothing may be left under way."""
        for lane in self.lanes:
            self.serve()
            self.wait(lane.queue.close())
            for fd in (lane.kick, lane.call, lane.err):
                os.close(fd)
        self.wait(self.device.close())
        self.wait(self.engine.close())
        self.loop.close()
