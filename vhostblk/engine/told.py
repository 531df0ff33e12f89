"""What a queue tells of itself; part of `vhostblk.engine.api`, where it is imported from."""

from dataclasses import dataclass
from enum import StrEnum

from vhostblk.memory.space import Access


@dataclass(frozen=True, slots=True)
class Fault:
    """
    Why a queue broke.

    Args:
        reason: Short words, e.g. "head out of range".
        index: Avail or descriptor index it was met at.
        value: The offending value.
    """

    reason: str
    index: int
    value: int


@dataclass(frozen=True, slots=True)
class Miss:
    """
    What the next chain of a queue waits for.

    Args:
        iova: The first address that is in no segment, or in one without *access*.
        length: Bytes that are needed from there on.
        access: What the device is about to do there.
        index: Avail index of the chain.
    """

    iova: int
    length: int
    access: Access
    index: int


class Way(StrEnum):
    """How reads or writes of a file are made; what cannot be done so goes through the ring."""

    RING = "ring"
    PLAIN = "plain"
    NOWAIT = "nowait"
    TIMED = "timed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """
    The ways that requests of a file take now.

    Args:
        reads: Of reads.
        writes: Of writes.
        reads_open: False: trying has not paid lately, and all take the ring for a while.
        writes_open: The same of writes.
    """

    reads: Way
    writes: Way
    reads_open: bool
    writes_open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """
    What a queue has done since it was made; names as in ``struct vhb_counters``.

    Args:
        late_calls: Given only when the ring had gone quiet: the driver said that it sleeps behind
            its last look, so its barriers do not work, or it was just about to look.
        descriptors: Of its requests; one that names an indirect table is not counted.
        segment_max: Bytes of the longest of them.
        outside: Chains that named an address that is denied or NOTED.
        stalls: Errors that stopped it.
        inline_hits: Reads and writes of a file that its worker made itself.
        inline_misses: That it tried to, in vain: what they need is not in memory.
        held: Of those in flight, held for an error.
        slots: Bounce slots of 2048 bytes that the descriptors and tables of the requests under
            way would fill, if the guest bounces.
        slots_high: The most that *slots* ever was.
        next_avail: The next chain the device takes: the avail index.  Packed: a descriptor, and
            those of the second round are the ring's size behind.
        next_used: The next it gives back, likewise.
    """

    reads: int = 0
    writes: int = 0
    flushes: int = 0
    discards: int = 0
    write_zeroes: int = 0
    get_ids: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    errors: int = 0
    unsupported: int = 0
    malformed: int = 0
    late_calls: int = 0
    kicks: int = 0
    calls: int = 0
    faults: int = 0
    descriptors: int = 0
    segment_max: int = 0
    slots_high: int = 0
    outside: int = 0
    stalls: int = 0
    inline_hits: int = 0
    inline_misses: int = 0
    slots: int = 0
    in_flight: int = 0
    held: int = 0
    dead: int = 0
    next_avail: int = 0
    next_used: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCounters:
    """
    What a worker has done since it was made; names as in ``struct vhb_worker_counters``.

    Args:
        polls_hit: It looked on behind the last request, and found work.
        polls_missed: It looked on, and slept all the same.
        polled_ns: Nanoseconds in which it looked on.
        sleeps: It had nothing to do.
        passes: Over its queues.
        visits: Of queues, in these passes; one that is idle for long is left out.
        enters: Calls of io_uring_enter or epoll_wait.
        window_us: Microseconds it looks on now; None: without an end.
    """

    polls_hit: int = 0
    polls_missed: int = 0
    polled_ns: int = 0
    sleeps: int = 0
    passes: int = 0
    visits: int = 0
    enters: int = 0
    window_us: int | None = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """
    What a worker is, and what it has done.

    Args:
        thread: The kernel's number of its thread; None: it has none, and is stepped.
        cpu: It runs on this one only; None: on any that the process may use.
        queue_count: Queues it serves.
        counters: What it has done.
    """

    thread: int | None
    cpu: int | None
    queue_count: int
    counters: WorkerCounters
