"""
A device under load: connected as a guest, its rings driven by the compiled generator.

Each queue has a thread, which is in C while it works; this one looks at what they have counted.
With ``verify`` there are three phases: all blocks are written, the load runs, all are read.
"""

import contextlib
import math
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from vhostblk.guest.config import LAYOUT, BlkConfig
from vhostblk.guest.dma import Direct
from vhostblk.guest.errors import BrokenQueueError, DisconnectedError, GuestError
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.generator import Generator, Job, arena_bytes
from vhostblk.guest.layout import MIB, PAGE, Region
from vhostblk.guest.load import Load, Plan, make_plan
from vhostblk.guest.load_report import Counts, Progress, Report, failures, make_report
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.process_clock import cpu_seconds
from vhostblk.guest.queue import Queue
from vhostblk.guest.rings import QueueOptions
from vhostblk.guest.session import Session
from vhostblk.spec.vhost_user import ProtocolFeature

TICK = 1.0
"""Seconds between two looks at the counters."""
ARENA = 1 << 32
"""GPA of the memory for requests; the rings are at 0."""
HUGE_PAGE = 2 * MIB
"""Regions are whole ones, which is what some back-ends map."""


Tell = Callable[[Progress], None]


def _nobody(_progress: Progress) -> None:
    pass


class LoadRun:
    """
    A load on a back-end; make one with ``connect``.

    Args:
        frontend: A fresh connection; owned.
        load: What to do.

    Raises:
        GuestError: The device cannot take it; nothing is left open.
    """

    def __init__(self, frontend: FrontEnd, load: Load) -> None:
        self._drivers: list[_Driver] = []
        self._stopped = self._at_once = False
        self._checked = 0
        self._failed: Counter[str] = Counter()
        with contextlib.ExitStack() as undo:
            undo.callback(frontend.close)
            frontend.connection.identify()
            self._memory = undo.enter_context(
                GuestMemory([Region(0, HUGE_PAGE * (1 + load.queues))], own_memfds=True)
            )
            dma = Direct(self._memory, ring_align=PAGE)
            self._session = Session(frontend, self._memory, load.wanted(), QueueOptions(), dma)
            undo.callback(self._session.close)
            self.plan = make_plan(load, self._session.agreement, self._config())
            """How the load goes onto the device."""
            undo.callback(self._close_drivers)
            self._prepare()
            self._session.start()
            self._undo = undo.pop_all()

    @classmethod
    def connect(cls, path: str | Path, load: Load) -> Self:
        """
        Connect to a listening back-end, with queues that are ready to run.

        Args:
            path: Its socket.
            load: What to do.

        Returns:
            The run; use it in a ``with`` statement, or ``close`` it.

        Raises:
            GuestError: Nobody is there, or the device cannot take the load.
        """
        return cls(FrontEnd.connect(path, timeout=load.timeout), load)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up and give everything back; again is harmless."""
        self._undo.close()

    @property
    def server(self) -> int | None:
        """Return the back-end's process; ``None``: it cannot be told, or is this one."""
        sender = self._session.frontend.connection.sender
        return None if sender in {None, 0, os.getpid()} else sender

    def stop(self, *, at_once: bool = False) -> None:
        """
        End the run: begin nothing more, and wait for what is in flight.

        May be called from a signal handler or another thread.

        Args:
            at_once: Do not wait.
        """
        self._stopped = True
        self._at_once = self._at_once or at_once
        for driver in self._drivers:
            driver.generator.stop(at_once=self._at_once)

    def run(self, tell: Tell = _nobody) -> Report:
        """
        Put the load on, once.

        Args:
            tell: Told every second how it goes.

        Returns:
            What came of it.

        Raises:
            MismatchError: With ``verify``: the disk holds something else than was written.
            RingError: The back-end broke the rules of a ring.
            GuestError: It is gone, gave up, does not answer, or the run was stopped too early.
        """
        load = self.plan.load
        if load.verify:
            self._phase("fill", self._sequential_jobs(read_percent=0), tell)
        if self._stopped:
            raise GuestError("stopped before anything was measured")
        server_cpu_us = self._phase("load", self._load_jobs(), tell)
        counts = self._counts()
        if load.verify and not self._stopped:
            self._phase("check", self._sequential_jobs(read_percent=100), tell)
        with contextlib.suppress(GuestError):  # it served until here
            self._session.stop()
        return make_report(
            self.plan,
            counts,
            interrupted=self._stopped,
            server=self.server,
            server_cpu_us=server_cpu_us,
            failed=self._failed,
            checked=self._checked,
        )

    def _config(self) -> BlkConfig | None:
        if not self._session.link.agreed(ProtocolFeature.CONFIG):
            return None
        return BlkConfig.parse(self._session.frontend.get_config(0, LAYOUT.size))

    def _prepare(self) -> None:
        """Make the rings as large as they must be, memory for requests, and who drives them."""
        options = QueueOptions(size=self.plan.queue_size)
        for queue in self._session.queues:
            queue.replace_ring(options, features=self._session.ring_features)
        each = _whole(arena_bytes(self.plan), PAGE)
        size = _whole(each * len(self._session.queues), HUGE_PAGE)
        self._memory.add_region(Region(ARENA, size))
        for queue in self._session.queues:
            arena = self._memory.reserve(ARENA + each * queue.index, each)
            self._drivers.append(_Driver(queue, self.plan, self._memory, arena))

    def _close_drivers(self) -> None:
        while self._drivers:
            self._drivers.pop().close()

    def _load_jobs(self) -> list[Job]:
        load = self.plan.load
        timed = load.requests is None
        return [
            Job(
                read_percent=load.read_percent,
                sequential=load.order == "seq",
                poll=load.wait == "poll",
                seed=load.seed + driver.queue.index,
                requests=self.plan.requests(driver.queue.index),
                warm_up=load.warm_up if timed else 0.0,
                seconds=load.seconds if timed else 0.0,
                silence=load.timeout,
            )
            for driver in self._drivers
        ]

    def _sequential_jobs(self, *, read_percent: int) -> list[Job]:
        """Return jobs that read or write every block once."""
        load = self.plan.load
        return [
            Job(
                read_percent=read_percent,
                sequential=True,
                poll=load.wait == "poll",
                seed=load.seed,
                requests=self.plan.share(driver.queue.index)[1],
                silence=load.timeout,
            )
            for driver in self._drivers
        ]

    def _counts(self) -> list[Counts]:
        return [driver.generator.counts() for driver in self._drivers]

    def _phase(self, name: str, jobs: Sequence[Job], tell: Tell) -> float | None:
        """Run a job on each queue; return CPU microseconds of the server for each request."""
        threads = [
            threading.Thread(target=driver.work, args=(job, self._cpu(driver), self.stop))
            for driver, job in zip(self._drivers, jobs, strict=True)
        ]
        watch = _Watch(name, jobs[0].warm_up, self, tell)
        with self._at_work(threads):
            for thread in threads:
                while thread.is_alive():
                    thread.join(watch.left())
                    watch.look()
        for driver in self._drivers:
            if driver.error is not None:
                raise driver.error
        counts = self._counts()
        self._checked += sum(one.checked for one in counts)
        self._failed += Counter(failures(counts))
        return watch.server_cpu_us()

    @contextlib.contextmanager
    def _at_work(self, threads: Sequence[threading.Thread]) -> Iterator[None]:
        """Start threads, and end them before anything is raised: what they use may go then."""
        begun: list[threading.Thread] = []
        try:
            for thread in threads:
                thread.start()
                begun.append(thread)
            yield
        except BaseException:
            self.stop(at_once=True)
            for thread in begun:
                thread.join()
            raise

    def _cpu(self, driver: "_Driver") -> int | None:
        cpus = self.plan.load.cpus
        return cpus[driver.queue.index % len(cpus)] if cpus else None

    def counted(self) -> tuple[int, int]:
        """Return how many requests have ended in this phase, and how many of them failed."""
        counts = self._counts()
        return sum(one.ended for one in counts), sum(failures(counts).values())


class _Driver:
    """
    A queue with what drives it.

    Args:
        queue: Ready to run; stays the caller's.
        plan: What it is for.
        memory: Of the rings and, behind that, of requests.
        arena: GPA of the queue's requests.
    """

    def __init__(self, queue: Queue, plan: Plan, memory: GuestMemory, arena: int) -> None:
        self.queue = queue
        self.error: Exception | None = None
        """Why it ended before its time."""
        self._watch = select.epoll()
        try:
            self._watch.register(queue.err, select.EPOLLIN)
            if queue.hangup_fd is not None:
                self._watch.register(queue.hangup_fd, select.EPOLLRDHUP)
            rings, requests = memory.mappings
            self.generator = Generator(queue, plan, (rings, requests), arena, self._watch.fileno())
        except BaseException:
            self._watch.close()
            raise

    def close(self) -> None:
        """Give everything back."""
        self.generator.close()
        self._watch.close()

    def work(self, job: Job, cpu: int | None, stop_all: Callable[[], None]) -> None:
        """Do a job, on a thread of its own; ``error`` tells what went wrong."""
        try:
            if cpu is not None:
                _pin(cpu)
            if not self.generator.run(job):
                self.error = self._why()
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits for the thread
            self.error = error
        if self.error is not None:
            stop_all()

    def _why(self) -> GuestError | None:
        ready = {fd for fd, _ in self._watch.poll(0)}
        if self.queue.err in ready:
            return BrokenQueueError(f"the device gave up queue {self.queue.index} (err eventfd)")
        if ready:
            return DisconnectedError("the back-end is gone, with requests in flight")
        return None


class _Watch:
    """
    Looks at a phase every second, at a server's clock as well.

    Args:
        phase: Its name.
        warm_up: Seconds of it that do not count.
        run: Whose.
        tell: Told every second.
    """

    def __init__(self, phase: str, warm_up: float, run: LoadRun, tell: Tell) -> None:
        self._phase, self._run, self._tell = phase, run, tell
        self._begun = self._last = time.monotonic()
        self._ended = 0
        self._next = self._begun + (warm_up or TICK)
        self._warm = not warm_up
        self._clock = 0, self._cpu()

    def left(self) -> float:
        """Return the seconds until the next look."""
        return max(self._next - time.monotonic(), 0.0)

    def look(self) -> None:
        """Tell how it goes, if it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        ended, failed = self._run.counted()
        phase = self._phase if self._warm else "warm-up"
        if not self._warm:
            self._clock = ended, self._cpu()
            self._warm = True
        iops = (ended - self._ended) / (now - self._last)
        self._tell(
            Progress(
                phase=phase,
                seconds=now - self._begun,
                ended=ended,
                iops=iops,
                bytes_per_s=iops * self._run.plan.load.bytes,
                failed=failed,
            )
        )
        self._ended, self._last, self._next = ended, now, now + TICK

    def server_cpu_us(self) -> float | None:
        """Return the server's CPU microseconds for each request, warm-up left out."""
        ended, before = self._clock
        requests = self._run.counted()[0] - ended
        used = self._cpu() - before
        return used * 1e6 / requests if requests and not math.isnan(used) else None

    def _cpu(self) -> float:
        server = self._run.server
        used = None if server is None else cpu_seconds(server)
        return math.nan if used is None else used


def _pin(cpu: int) -> None:
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        raise GuestError(f"no thread can run on CPU {cpu}: {error.strerror}") from error


def _whole(size: int, unit: int) -> int:
    """Round up."""
    return -(-size // unit) * unit
