"""A thread inside ``vhb_worker_run`` and the events of its queues."""

import asyncio
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

from vhostblk.engine.native.core import check, ffi, lib, make
from vhostblk.engine.poll import Poll, PollMode
from vhostblk.engine.told import WorkerCounters, WorkerStatus

_log = logging.getLogger(__name__)

_MODES = {
    PollMode.AUTO: lib.VHB_POLL_AUTO,
    PollMode.FIXED: lib.VHB_POLL_FIXED,
    PollMode.ALWAYS: lib.VHB_POLL_ALWAYS,
}


class EventTaker(Protocol):
    """A queue, as its worker knows it."""

    handle: Any

    def on_events(self, events: int) -> None:
        """Hand out what the worker posted; on the control thread."""
        ...


class Worker:
    """
    A worker of the core.

    Args:
        index: Its number.
        loop: Where its events are handed out.
        poll: How long it looks on before it sleeps.
        cpu: Its thread runs there only; None: on any.
        threaded: Work on a thread of its own; without it only ``vhb_worker_step`` works.
    """

    def __init__(
        self,
        index: int,
        loop: asyncio.AbstractEventLoop,
        poll: Poll,
        *,
        cpu: int | None,
        threaded: bool,
    ) -> None:
        how = {"poll": _MODES[poll.mode], "poll_us": poll.microseconds}
        config = ffi.new("struct vhb_worker_config *", how)
        self.handle = make("worker", lib.vhb_worker_new, config)
        self.index = index
        self.queues: tuple[EventTaker, ...] = ()
        self._handles = _handles(())
        self._events = ffi.new("uint32_t *")
        self._poll = poll.mode
        self._cpu = cpu
        self._loop = loop
        self._event_fd: int = lib.vhb_worker_event_fd(self.handle)
        uring = lib.vhb_worker_uring(self.handle)
        if uring < 0:
            _log.warning(
                "io_uring is refused (%s): serving with preadv/pwritev", os.strerror(-uring)
            )
        loop.add_reader(self._event_fd, self._on_events)
        self._thread = threading.Thread(target=self._run, name=f"vhb-worker-{index}", daemon=True)
        if threaded:
            self._thread.start()

    def status(self) -> WorkerStatus:
        """Return what it is and has done; legal at any time."""
        return WorkerStatus(
            thread=self._thread.native_id,
            cpu=self._cpu,
            queue_count=len(self.queues),
            counters=self._counters(),
        )

    def _counters(self) -> WorkerCounters:
        raw = ffi.new("struct vhb_worker_counters *")
        check(lib.vhb_worker_counters(self.handle, raw), "counters")
        counted = WorkerCounters(
            **{one.name: getattr(raw, one.name) for one in fields(WorkerCounters)}
        )
        return replace(counted, window_us=None) if self._poll is PollMode.ALWAYS else counted

    def _run(self) -> None:
        if self._cpu is not None:
            self._pin({self._cpu})
        result = lib.vhb_worker_run(self.handle)
        if result < 0:
            _log.critical("a worker cannot work: %s", os.strerror(-result))

    def _pin(self, cpus: set[int]) -> None:
        try:
            os.sched_setaffinity(0, cpus)  # of this thread
        except OSError as error:  # it could when we began, and may no longer
            _log.warning("worker %d is not pinned to a CPU: %s", self.index, error.strerror)
            self._cpu = None

    def take(self, queue: EventTaker) -> None:
        """Hand out events of a queue from now on."""
        self.queues = (*self.queues, queue)
        self._handles = _handles(self.queues)

    def drop(self, queue: EventTaker) -> None:
        """Hand out no event of a queue any more."""
        self.queues = tuple(one for one in self.queues if one is not queue)
        self._handles = _handles(self.queues)

    def _on_events(self) -> None:
        os.read(self._event_fd, 8)
        # Some of many have any: C looks for them.
        queues, handles = self.queues, self._handles
        at = lib.vhb_queues_take_events(handles, len(queues), 0, self._events)
        while at < len(queues):
            queues[at].on_events(self._events[0])
            at = lib.vhb_queues_take_events(handles, len(queues), at + 1, self._events)

    async def close(self) -> None:
        """End the thread; a worker whose disk never answered is left to the process's end."""
        self._loop.remove_reader(self._event_fd)
        lib.vhb_worker_stop(self.handle)
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        if lib.vhb_worker_free(self.handle) < 0:
            _log.error("a disk still holds requests: its worker cannot be freed")


def _handles(queues: Sequence[EventTaker]) -> Any:
    return ffi.new("struct vhb_queue *[]", [queue.handle for queue in queues])
