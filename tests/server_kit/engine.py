"""A data plane that moves no data: it notes what it is told and keeps the rules of ownership."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from vhostblk.blk.device import BlkDevice
from vhostblk.engine.api import (
    Busy,
    Counters,
    Driven,
    Fault,
    Job,
    Latency,
    Miss,
    OnError,
    Op,
    Piece,
    Queue,
    Slow,
    Stall,
    WorkerCounters,
    WorkerStatus,
)
from vhostblk.memory.dirty import DirtyLog
from vhostblk.memory.sample import Sample
from vhostblk.memory.space import Segment


class FakeMailbox:
    """Jobs a test posts; what became of them."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.jobs: list[Job] = []
        self.ended: dict[int, int | str] = {}

    def fileno(self) -> int:
        return self._fd

    def post(self, *jobs: Job) -> None:
        self.jobs += jobs
        os.eventfd_write(self._fd, 1)

    def take(self) -> list[Job]:
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        jobs, self.jobs = self.jobs, []
        return jobs

    def complete(self, ended: Sequence[tuple[int, int]]) -> None:
        for tag, errno in ended:
            assert tag not in self.ended
            self.ended[tag] = errno

    def lost(self) -> int:
        """Return 0: nothing that vanishes is survived here."""
        return 0

    def break_queue(self, tag: int) -> None:
        assert tag not in self.ended
        self.ended[tag] = "kept"

    def close(self) -> None:
        os.close(self._fd)


class FakeQueue:
    """
    A queue that notes every call as a tuple in *calls*.

    Args:
        index: Its number.
        on_broken: As in the contract.
        mailbox: Where a Python disk would find jobs.
    """

    def __init__(
        self, index: int, on_broken: Callable[[], None], mailbox: FakeMailbox | None
    ) -> None:
        self.index = index
        self.calls: list[tuple[object, ...]] = []
        self.segments: list[Segment] = []
        self.running = False
        self.closed = False
        self.next = 0
        self.dead = 0
        self.done = Counters()
        self.broken: Fault | None = None
        self.may_drain = asyncio.Event()
        self.may_drain.set()
        self.using: list[Piece] = []
        self.is_unused = asyncio.Event()
        self.is_unused.set()
        self._on_broken = on_broken
        self.on_miss: Callable[[Miss], None] | None = None
        self.sampling: tuple[int, int] | None = None
        self.on_samples: Callable[[], None] | None = None
        self.seen: list[Sample] = []
        self.log: DirtyLog | None = None
        self.inflight: tuple[Piece, int] | None = None
        self.policy = OnError.REPORT
        self.on_stalled: Callable[[Stall], None] | None = None
        self.on_failed: Callable[[Stall], None] | None = None
        self.stalled: Stall | None = None
        self.resumed = 0
        self.took: dict[Op, Latency] = {}
        self.under_way: list[Slow] = []
        self.on_busy: Callable[[], None] | None = None
        self._mailbox = mailbox
        self._fds: dict[str, int | None] = {}

    @property
    def mailbox(self) -> FakeMailbox | None:
        return self._mailbox

    @property
    def worker(self) -> int:
        return 0

    def names(self) -> list[object]:
        """Return the names of the calls so far, and forget the calls."""
        names = [call[0] for call in self.calls]
        self.calls.clear()
        return names

    def break_ring(self, fault: Fault) -> None:
        self.broken = fault
        self.running = False
        self._on_broken()

    def _note(self, *call: object) -> None:
        if self.running:
            raise Busy(f"{call[0]} while the worker owns the queue")
        self.calls.append(call)

    def _set_fd(self, kind: str, fd: int | None) -> None:
        self._note(kind, fd is not None)
        old = self._fds.get(kind)
        if old is not None:
            os.close(old)
        self._fds[kind] = fd

    def set_space(self, segments: Sequence[Segment]) -> None:
        self._note("space", [(one.iova, one.length) for one in segments])
        self.segments = list(segments)

    def set_ask(self, on_miss: Callable[[Miss], None] | None) -> None:
        if on_miss is not self.on_miss:
            self._note("ask", on_miss is not None)
        self.on_miss = on_miss

    def deny(self, iova: int, length: int) -> None:
        self._note("deny", iova, length)

    def set_ring(
        self, *, size: int, desc: Sequence[Piece], avail: Sequence[Piece], used: Sequence[Piece]
    ) -> None:
        lengths = [sum(length for _, length in part) for part in (desc, avail, used)]
        self._note("ring", size, *lengths)

    def set_base(self, base: int) -> None:
        self._note("base", base)
        self.next = base
        self.broken = None

    def base(self) -> int:
        if self.running:
            raise Busy("base while the worker owns the queue")
        return self.next

    def set_kick(self, fd: int | None) -> None:
        self._set_fd("kick", fd)

    def set_call(self, fd: int | None) -> None:
        self._set_fd("call", fd)

    def set_err(self, fd: int | None) -> None:
        self._set_fd("err", fd)

    def eventfds(self) -> Mapping[str, int]:
        return {kind: fd for kind, fd in self._fds.items() if fd is not None}

    def set_enabled(self, *, enabled: bool) -> None:
        self._note("enabled", enabled)

    def set_features(self, features: int) -> None:
        self._note("features", features)

    def set_blk(self, blk: BlkDevice, *, writethrough: bool) -> None:
        assert blk.capacity_sectors
        self._note("blk", writethrough)

    def set_on_error(
        self,
        policy: OnError,
        *,
        on_stalled: Callable[[Stall], None],
        on_failed: Callable[[Stall], None] | None = None,
    ) -> None:
        assert not self.running
        self.policy, self.on_stalled, self.on_failed = policy, on_stalled, on_failed

    def latency(self) -> Mapping[Op, Latency]:
        return self.took

    def slow(self, seconds: float) -> list[Slow]:
        return [one for one in self.under_way if one.age >= seconds]

    def watch_busy(self, on_busy: Callable[[], None] | None) -> None:
        self.on_busy = on_busy

    def resume(self) -> None:
        self.resumed += 1
        self.stalled = None

    def stall(self) -> Stall | None:
        return self.stalled

    def set_inflight(self, memory: Piece | None, *, size: int) -> None:
        noted = None if memory is None else (memory, size)
        if noted != self.inflight:
            self._note("inflight", size)
        self.inflight = noted

    def set_log(self, log: DirtyLog | None) -> None:
        if log != self.log:
            self._note("log", log is not None)
        self.log = log

    def set_sampling(
        self, *, first: int, every: int, on_samples: Callable[[], None] | None
    ) -> None:
        if self.running:
            raise Busy("sampling while the worker owns the queue")
        self.sampling = (first, every)
        self.on_samples = on_samples

    def samples(self) -> list[Sample]:
        taken, self.seen = self.seen, []
        return taken

    def condemn(self, why: str) -> None:
        self._note("condemn", why)
        self.broken = Fault(why, self.next, 0)
        self._on_broken()

    def watch_use(self, memory: Sequence[Piece]) -> None:
        if self.running:
            raise Busy("memory in use while the worker owns the queue")
        self.using = list(memory)

    async def unused(self) -> None:
        if self.using:
            await self.is_unused.wait()

    def run(self) -> None:
        assert self.broken is None
        self._note("run")
        self.running = True

    async def parked(self) -> None:
        self.running = False
        self._note("parked")

    async def drained(self, *, seconds: float) -> int:
        try:
            await asyncio.wait_for(self.may_drain.wait(), seconds)
        except TimeoutError:
            self.dead += 1
        self.running = False
        self._note("drained")
        return self.dead

    def fault(self) -> Fault | None:
        return self.broken

    def counters(self) -> Counters:
        return replace(self.done, dead=self.dead)

    async def close(self) -> None:
        assert not self.running
        self.closed = True
        for fd in self._fds.values():
            if fd is not None:
                os.close(fd)
        self._fds.clear()
        if self._mailbox is not None:
            self._mailbox.close()


@dataclass
class FakeEngine:
    """
    Makes `FakeQueue`; is its own share for every device.

    Args:
        mailboxes: Whether disks are served through them.
        can_inflight: Whether it says that it can keep an inflight region.
        can_log: Whether it says that it can mark a dirty log.
    """

    mailboxes: bool = False
    can_inflight: bool = True
    can_log: bool = True
    queues: list[FakeQueue] = field(default_factory=list)
    guarded: int = 0
    lost: int = 0
    closed: bool = False

    @property
    def name(self) -> str:
        return "fake"

    @property
    def ring_features(self) -> int:
        return 3 << 28 | 3 << 34 | 1 << 40

    def drive(self, disk: object) -> Sequence[Driven]:  # noqa: ARG002
        return ()

    def device(self, disk: object) -> "FakeEngine":
        assert disk is not None
        return self

    def queue(self, index: int, *, on_broken: Callable[[], None]) -> FakeQueue:
        mailbox = FakeMailbox() if self.mailboxes else None
        self.queues.append(FakeQueue(index, on_broken, mailbox))
        return self.queues[-1]

    def workers(self) -> Sequence[WorkerStatus]:
        counters = WorkerCounters(polls_hit=2)
        return [WorkerStatus(thread=7, cpu=None, queue_count=len(self.queues), counters=counters)]

    def guard(self, host: int, length: int, page: int) -> Callable[[], None]:
        assert 0 not in {host, length, page}
        self.guarded += 1

        def end() -> None:
            self.guarded -= 1

        return end

    def dead(self) -> int:
        return sum(queue.dead for queue in self.queues)

    def ways(self) -> None:
        """It serves no file."""

    async def move(self, queue: Queue, worker: int | None) -> int:
        raise AssertionError(queue, worker)

    async def close(self) -> None:
        self.closed = True
