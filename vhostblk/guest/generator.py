"""
The seam to the compiled load generator: the only file that imports it.

It drives one ring in the thread that calls ``run``, without the interpreter's lock.
"""

import os
from dataclasses import dataclass
from typing import Any

from vhostblk.guest._driver import ffi, lib
from vhostblk.guest.errors import DeadlineError, GuestError, MismatchError, RingError
from vhostblk.guest.histogram import Histogram
from vhostblk.guest.load import Plan
from vhostblk.guest.load_report import READ, WRITE, Counts
from vhostblk.guest.mapping import Mapping
from vhostblk.guest.queue import Queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    What a generator is to do until it returns.

    Args:
        read_percent: Of the requests.
        sequential: Block after block; else at random.
        poll: Look at the ring instead of sleeping.
        seed: Of the random order, not 0.
        requests: How many; 0: no end.
        warm_up: Seconds not counted.
        seconds: After that; 0: no end.
        silence: Seconds the device may be without an answer.
    """

    read_percent: int
    sequential: bool
    poll: bool
    seed: int
    requests: int
    warm_up: float = 0.0
    seconds: float = 0.0
    silence: float


class Generator:
    """
    A driver of one ring.

    Args:
        queue: The ring, never used, and its eventfds; stays the caller's, and nobody uses it.
        plan: How the load goes onto the device.
        memory: Where the ring lies, and where requests may lie.
        arena: GPA of memory for requests, `arena_bytes` of it, whole pages.
        watch: A descriptor that ends a run when it can be read.

    Raises:
        GuestError: There is no memory for it.
    """

    def __init__(
        self, queue: Queue, plan: Plan, memory: tuple[Mapping, Mapping], arena: int, watch: int
    ) -> None:
        self.index = queue.index
        rings, requests = memory
        self._views = [ffi.from_buffer("uint8_t *", one.data) for one in memory]
        at, ring_at = queue.ring.addresses, self._views[0] - rings.region.gpa
        config = _config(plan, queue)
        config.desc, config.avail, config.used = (
            ring_at + part for part in (at.desc, at.avail, at.used)
        )
        config.arena = self._views[1] + (arena - requests.region.gpa)
        config.arena_address = arena
        config.watch_fd = watch
        out = ffi.new("struct drv_queue **")
        result = lib.drv_queue_new(config, out)
        if result < 0:
            self._release()
            raise GuestError(f"cannot make a load generator: {os.strerror(-result)}")
        self._queue = out[0]

    def close(self) -> None:
        """Give everything back; ``run`` has returned."""
        lib.drv_queue_free(self._queue)
        self._queue = ffi.NULL
        self._release()

    def run(self, job: Job) -> bool:
        """
        Do a job.

        Returns:
            False: it was stopped at once, with requests in flight, or *watch* could be read.

        Raises:
            GuestError: The device broke a rule, returned wrong data, or does not answer.
        """
        fault = ffi.new("struct drv_fault *")
        made = ffi.new(
            "struct drv_job *",
            {
                "read_percent": job.read_percent,
                "sequential": job.sequential,
                "poll": job.poll,
                "seed": job.seed,
                "requests": job.requests,
                "warm_ns": round(job.warm_up * 1e9),
                "run_ns": round(job.seconds * 1e9),
                "stall_ns": round(job.silence * 1e9),
            },
        )
        result = lib.drv_queue_run(self._queue, made, fault)
        if result < 0:
            raise GuestError(f"queue {self.index}: {os.strerror(-result)}")
        if result in {lib.DRV_WATCHED, lib.DRV_ABANDONED}:
            return False
        if result != lib.DRV_DONE:
            raise _error(self.index, result, fault, job.silence)
        return True

    def stop(self, *, at_once: bool = False) -> None:
        """Begin nothing more, ever; *at_once*: and do not wait for what is in flight."""
        lib.drv_queue_stop(self._queue, at_once)

    def counts(self) -> Counts:
        """Return what was counted so far."""
        c = ffi.new("struct drv_counters *")
        lib.drv_queue_counters(self._queue, c)
        reads, writes = (
            Histogram(ffi.unpack(c.latency[i], lib.DRV_BUCKETS), c.sum_ns[i], c.max_ns[i])
            for i in (READ, WRITE)
        )
        return Counts(
            latency=(reads, writes),
            kicks=c.kicks,
            sleeps=c.sleeps,
            begin_ns=c.begin_ns,
            end_ns=c.end_ns,
            cpu_ns=c.cpu_ns,
            failed=tuple(c.failed),
            missed_calls=c.missed_calls,
            ended=c.ended,
            checked=c.checked,
        )

    def _release(self) -> None:
        for view in self._views:
            ffi.release(view)


def arena_bytes(plan: Plan) -> int:
    """Return how much memory the requests of one queue take."""
    return int(lib.drv_arena_bytes(_config(plan)))


def bucket(ns: int) -> int:
    """Return where the generator counts a latency."""
    return int(lib.drv_bucket(ns))


def _config(plan: Plan, queue: Queue | None = None) -> Any:  # noqa: ANN401 - cdata has no type
    load = plan.load
    config = ffi.new("struct drv_config *")
    config.size = plan.queue_size
    config.packed = load.packed
    config.event_idx, config.indirect = plan.event_idx, plan.indirect
    config.verify = load.verify
    config.depth, config.bytes = load.depth, load.bytes
    config.piece, config.tag = plan.piece, load.tag
    if queue is not None:
        config.kick_fd, config.call_fd = queue.kick, queue.call
        config.first, config.blocks = plan.share(queue.index)
    return config


def _error(index: int, reason: int, fault: Any, silence: float) -> GuestError:  # noqa: ANN401 - the same
    where = f"queue {index}"
    if reason == lib.DRV_MISMATCH:
        return MismatchError(
            fault.at, found=(fault.got, fault.got_2), wanted=(fault.want, fault.want_2)
        )
    if reason == lib.DRV_SILENT:
        return DeadlineError(
            f"{where}: {fault.got} requests in flight, no answer for {silence:g} s"
        )
    said = {
        lib.DRV_BAD_INDEX: (
            f"the used index went from {fault.at} to {fault.got}, "
            f"but {fault.want} requests are in flight"
        ),
        lib.DRV_BAD_ID: f"the device used {fault.got} at {fault.at}: not in flight",
        lib.DRV_BAD_LENGTH: (
            f"the device says at {fault.at} that it wrote {fault.got} bytes, "
            f"of {fault.want} that it may"
        ),
    }
    return RingError(f"{where}: {said[reason]}")
