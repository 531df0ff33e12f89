"""
Rings made of plain bytes, driven against any engine through engine/api.py only.

A `Rig` is an engine without a thread, a device, guest memory and a disk of bytes; a `Lane` is one
queue of it with a driver of our own arithmetic.  Nothing happens but in `Rig.pump`.
"""

import asyncio
import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from vhostblk.blk.device import BlkDevice
from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.engine.api import Engine, Fault, Job, Mailbox, Op, Queue
from vhostblk.memory.space import Access, Segment
from vhostblk.spec.virtio_blk import RequestType
from vhostblk.spec.virtio_ring import F_INDIRECT_DESC, F_VERSION_1

GPA = 0x4000_0000
MEMORY = 2 << 20
HEAP = 1 << 20
LANE = 64 << 10
SECTORS = 4096
NEXT, WRITE, INDIRECT = 1, 2, 4
FEATURES = F_VERSION_1 | F_INDIRECT_DESC
PENDING = 0xEE
"""What a status byte holds until the device writes it."""

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


class Memory:
    """Guest memory that begins at GPA."""

    def __init__(self) -> None:
        self.bytes = mmap.mmap(-1, MEMORY)
        self._anchor = ctypes.c_char.from_buffer(self.bytes)
        self.host = ctypes.addressof(self._anchor)
        self._heap = HEAP

    def alloc(self, length: int, *, align: int = 16) -> int:
        """Return the guest address of *length* fresh bytes."""
        start = -(-self._heap // align) * align
        self._heap = start + length
        assert self._heap <= MEMORY
        return GPA + start

    def read(self, gpa: int, length: int) -> bytes:
        return self.bytes[gpa - GPA : gpa - GPA + length]

    def write(self, gpa: int, data: bytes) -> None:
        self.bytes[gpa - GPA : gpa - GPA + len(data)] = data

    def segment(self, gpa: int = GPA, length: int = MEMORY, access: int = 3) -> Segment:
        return Segment(gpa, length, self.host + gpa - GPA, Access(access), gpa // 4096)

    def at(self, gpa: int) -> int:
        return self.host + gpa - GPA


@dataclass
class Asked:
    """A request that was made available; what became of it."""

    lane: "Lane"
    head: int
    status_at: int
    data_at: int = 0
    length: int = 0

    @property
    def status(self) -> int:
        return self.lane.memory.read(self.status_at, 1)[0]

    @property
    def data(self) -> bytes:
        return self.lane.memory.read(self.data_at, self.length)

    @property
    def used(self) -> int | None:
        """Bytes the device says it wrote; None: not given back."""
        return dict(self.lane.used()).get(self.head)


@dataclass
class Lane:
    """A queue and its driver."""

    memory: Memory
    queue: Queue
    size: int
    desc: int
    avail: int
    used_ring: int
    kick: int
    call: int
    err: int
    broken: list[Fault | None] = field(default_factory=list)
    next_desc: int = 0
    avail_idx: int = 0
    dead: set[int] = field(default_factory=set)

    def put(self, index: int, desc: tuple[int, int, int, int], *, table: int = 0) -> None:
        """Write one descriptor (address, length, flags, next), of the ring or of *table*."""
        self.memory.write((table or self.desc) + 16 * index, struct.pack("<QIHH", *desc))

    def chain(self, *parts: tuple[int, int, int]) -> int:
        """Write a chain of (address, length, flags); return its head."""
        head = self.next_desc
        for i, (address, length, flags) in enumerate(parts):
            index = (head + i) % self.size
            more = NEXT if i + 1 < len(parts) else 0
            self.put(index, (address, length, flags | more, (index + 1) % self.size))
        self.next_desc = (head + len(parts)) % self.size
        return head

    def table(self, *parts: tuple[int, int, int]) -> tuple[int, int, int]:
        """Write an indirect table; return the part that names it."""
        address = self.memory.alloc(16 * len(parts))
        for i, (where, length, flags) in enumerate(parts):
            more = NEXT if i + 1 < len(parts) else 0
            self.put(i, (where, length, flags | more, i + 1), table=address)
        return (address, 16 * len(parts), INDIRECT)

    def offer(self, head: int) -> None:
        """Make a chain available, and kick."""
        slot = self.avail + 4 + 2 * (self.avail_idx % self.size)
        self.memory.write(slot, struct.pack("<H", head))
        self.set_avail_idx(self.avail_idx + 1)
        os.eventfd_write(self.kick, 1)

    def set_avail_idx(self, value: int) -> None:
        self.avail_idx = value & 0xFFFF
        self.memory.write(self.avail + 2, struct.pack("<H", self.avail_idx))

    def set_used_idx(self, value: int) -> None:
        self.memory.write(self.used_ring + 2, struct.pack("<H", value))

    def no_interrupt(self, *, quiet: bool) -> None:
        self.memory.write(self.avail, struct.pack("<H", quiet))

    def used_flags(self) -> int:
        return int.from_bytes(self.memory.read(self.used_ring, 2), "little")

    def used_idx(self) -> int:
        return int.from_bytes(self.memory.read(self.used_ring + 2, 2), "little")

    def used(self, since: int = 0) -> list[tuple[int, int]]:
        """Return (head, length) of every element the device published after *since*."""
        found = []
        for i in range(since, self.used_idx()):
            raw = self.memory.read(self.used_ring + 4 + 8 * (i % self.size), 8)
            found.append(struct.unpack("<II", raw))
        return found

    def rings(self, fd: int) -> int:
        """Return how often an eventfd of ours was written since the last look."""
        try:
            return os.eventfd_read(fd)
        except BlockingIOError:
            return 0

    def header(self, kind: int, sector: int = 0) -> tuple[int, int, int]:
        """Write a request header; return the part that names it."""
        address = self.memory.alloc(16)
        self.memory.write(address, struct.pack("<IIQ", kind, 0, sector))
        return (address, 16, 0)

    def status(self) -> tuple[int, int, int]:
        """Return a part for a status byte that was not written yet."""
        address = self.memory.alloc(1)
        self.memory.write(address, bytes([PENDING]))
        return (address, 1, WRITE)

    def data(self, content: bytes, flags: int = 0) -> tuple[int, int, int]:
        address = self.memory.alloc(len(content), align=512)
        self.memory.write(address, content)
        return (address, len(content), flags)

    def ask(self, kind: int, sector: int = 0, *, out: bytes = b"", room: int = 0) -> Asked:
        """Make a whole request available: *out* for the device, *room* bytes for its answer."""
        parts = [self.header(kind, sector)]
        if out:
            parts.append(self.data(out))
        if room:
            parts.append(self.data(b"\xdd" * room, WRITE))
        parts.append(self.status())
        asked = Asked(self, self.chain(*parts), parts[-1][0])
        if room:
            asked.data_at, asked.length = parts[-2][0], room
        self.offer(asked.head)
        return asked

    def read(self, sector: int = 0, length: int = 512) -> Asked:
        return self.ask(RequestType.IN, sector, room=length)

    def write(self, sector: int = 0, out: bytes = b"w" * 512) -> Asked:
        return self.ask(RequestType.OUT, sector, out=out)

    @property
    def mailbox(self) -> Mailbox:
        box = self.queue.mailbox
        assert box is not None
        return box

    def place(self) -> dict[str, list[tuple[int, int]]]:
        """Return where the parts of the ring live, for `Queue.set_ring`."""
        at = self.memory.at
        return {
            "desc": [(at(self.desc), 16 * self.size)],
            "avail": [(at(self.avail), 6 + 2 * self.size)],
            "used": [(at(self.used_ring), 6 + 8 * self.size)],
        }


class Rig:
    """An engine that is stepped by hand, one device, a disk of bytes."""

    def __init__(self, make: Callable[[], SteppedEngine]) -> None:
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

    def lane(
        self,
        *,
        size: int = 16,
        features: int = FEATURES,
        blk: BlkDevice = BLK,
        writethrough: bool = False,
        run: bool = True,
    ) -> Lane:
        """Make a queue with a ring, enabled, and hand it over."""
        base = GPA + LANE * len(self.lanes)
        avail = base + 16 * size
        used = -(-(avail + 6 + 2 * size) // 4) * 4
        broken: list[Fault | None] = []
        index = len(self.lanes)
        queue = self.call(
            lambda: self.device.queue(index, on_broken=lambda: broken.append(queue.fault()))
        )
        kick, call, err = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3))
        lane = Lane(self.memory, queue, size, base, avail, used, kick, call, err, broken)
        self.lanes.append(lane)

        def set_up() -> None:
            queue.set_space([self.memory.segment()])
            queue.set_ring(size=size, **lane.place())
            queue.set_base(0)
            queue.set_kick(os.dup(kick))
            queue.set_call(os.dup(call))
            queue.set_err(os.dup(err))
            queue.set_features(features)
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
        lane.mailbox.complete(job.tag, error)

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

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Await something of the control plane while the engine works, without the disk."""

        async def inside() -> T:
            return await awaitable

        task = self.loop.create_task(inside())
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
