"""Do again what a recording says, by the fake guest, on the socket of any back-end."""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vhostblk.guest import Completion, Guest, Range, Request
from vhostblk.guest.blk import BlkTicket
from vhostblk.guest.errors import RingError
from vhostblk.spec.virtio_blk import WRITE_ZEROES_F_UNMAP
from vhostblk.trace.format import SECTOR, Op
from vhostblk.trace.reader import Request as Recorded
from vhostblk.trace.records import NO_QUEUE, Submitted

LATE_NS = 1_000_000
_NEVER = 1 << 63


@dataclass(slots=True)
class Replayed:
    """
    How a replay went.

    Args:
        requests: How many were done.
        errors: How many failed, of those that had not when they were recorded.
        differ: Reads that brought other bytes than were recorded.
        compared: Reads whose bytes could be compared.
        late: Requests that were made more than a millisecond after their time.
        seconds: All of it.
    """

    requests: int = 0
    errors: int = 0
    differ: int = 0
    compared: int = 0
    late: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _UnderWay:
    ticket: BlkTicket
    recorded: Recorded
    ends: int


class Replay:
    """
    Requests of a recording, for a guest that is connected.

    A request is made when all are over that were when it was recorded, so what it may have
    depended on has happened; more are under way together than were then never.

    Args:
        guest: Connected; with as many queues as are wanted.
        requests: In the order in which they were submitted.
        speed: Times are divided by it; 0: as fast as it goes.
        compare: Whether bytes that are read are those that were.
        clock: Nanoseconds.
    """

    def __init__(
        self,
        guest: Guest,
        requests: Sequence[Recorded],
        *,
        speed: float = 0,
        compare: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._guest = guest
        self._requests = requests
        self._speed = speed
        self._compare = compare
        self._clock = clock
        self._under_way: list[_UnderWay] = []
        self.done = Replayed()

    def run(self) -> Replayed:
        """
        Do all of it.

        Raises:
            GuestError: The back-end went away, broke the queue or does not answer.
        """
        begin = self._clock()
        first = self._requests[0].submitted.time if self._requests else 0
        for recorded in self._requests:
            self._wait_for(recorded.submitted.seq)
            if self._speed:
                self._sleep_until(begin + (recorded.submitted.time - first) / self._speed)
            self._submit(recorded)
        self._wait_for(_NEVER)
        self.done.seconds = (self._clock() - begin) / 1e9
        return self.done

    def _sleep_until(self, due: float) -> None:
        left = due - self._clock()
        if left > 0:
            time.sleep(left / 1e9)
        elif left < -LATE_NS:
            self.done.late += 1

    def _wait_for(self, seq: int) -> None:
        """Wait for those that were over before *seq*."""
        due = [one for one in self._under_way if one.ends < seq]
        self._under_way = [one for one in self._under_way if one.ends >= seq]
        for one in due:
            self._over(one)

    def _submit(self, recorded: Recorded) -> None:
        submitted = recorded.submitted
        queue = 0 if submitted.queue == NO_QUEUE else submitted.queue % len(self._guest.queues)
        request = _request(submitted)
        while True:
            try:
                ticket = self._guest.submit(request, queue=queue)
                break
            except RingError:
                if not self._under_way:
                    raise
                self._over(self._under_way.pop(0))
        ends = _NEVER - 1 if recorded.completed is None else recorded.completed.seq
        self._under_way.append(_UnderWay(ticket, recorded, ends))
        if submitted.fua:
            self._over(self._under_way.pop())
            self._guest.run(Request.flush(), queue=queue)

    def _over(self, one: _UnderWay) -> None:
        result = self._guest.wait(one.ticket)
        self.done.requests += 1
        completed = one.recorded.completed
        if result.status and not (completed and completed.error):
            self.done.errors += 1
        self._look(one.recorded, result)

    def _look(self, recorded: Recorded, result: Completion) -> None:
        completed = recorded.completed
        if not self._compare or completed is None or completed.digest is None or result.status:
            return
        self.done.compared += 1
        self.done.differ += zlib.crc32(result.data) != completed.digest


def _request(submitted: Submitted) -> Request:
    sector = submitted.offset // SECTOR
    match submitted.op:
        case Op.READ:
            return Request.read(sector, submitted.length)
        case Op.WRITE:
            return Request.write(sector, submitted.payload or _made_up(submitted))
        case Op.FLUSH:
            return Request.flush()
        case Op.DISCARD:
            return Request.discard([Range(sector, submitted.length // SECTOR)])
        case Op.WRITE_ZEROES:
            flags = WRITE_ZEROES_F_UNMAP if submitted.unmap else 0
            return Request.write_zeroes([Range(sector, submitted.length // SECTOR, flags=flags)])


def _made_up(submitted: Submitted) -> bytes:
    """Return bytes in place of those that were not recorded; no two writes have the same."""
    return submitted.seq.to_bytes(8, "little") * (submitted.length // 8)
