"""
Load whose requests overlap on purpose, and the history of it.

All is done by one thread, as guests' drivers do it: the device has many requests at the same time,
on several queues, and is free in their order.
"""

import random
import struct
from collections.abc import Mapping

from vhostblk.guest.blk import BlkTicket, Range, Request
from vhostblk.guest.errors import GuestError
from vhostblk.guest.guest import Guest
from vhostblk.guest.history.record import History, Kind, Operation
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec.virtio_blk import SECTOR_SIZE

STAMP = struct.Struct("<IIQ")
"""Tag of the run, number of the write, sector; as often as it fits into a sector."""
MIX: Mapping[Kind, int] = {
    Kind.WRITE: 8,
    Kind.READ: 8,
    Kind.FLUSH: 1,
    Kind.ZEROES: 1,
    Kind.DISCARD: 1,
}
"""How often each kind of request is made, of all."""
_NEEDS = {
    Kind.FLUSH: vb.F_FLUSH,
    Kind.ZEROES: vb.F_WRITE_ZEROES,
    Kind.DISCARD: vb.F_DISCARD,
}


def stamps(tag: int, number: int, first: int, count: int) -> bytes:
    """
    Make contents that no other write makes.

    Args:
        tag: Of the run, 32 bits.
        number: Of the write, 32 bits.
        first: The sector they are for.
        count: Sectors.

    Returns:
        512 bytes for each sector.
    """
    times = SECTOR_SIZE // STAMP.size
    return b"".join(STAMP.pack(tag, number, first + i) * times for i in range(count))


class ConcurrentLoad:
    """
    Requests at random places that overlap, on all queues of a guest.

    Args:
        guest: Who makes them; may lose its back-end and find it again.
        history: Where they are noted.
        first: First sector that is used, a multiple of the disk's block.
        sectors: How many; few are much in each other's way.
        depth: Requests in flight at most.
        longest: Sectors of a request at most.
        mix: How often each kind is made; what the disk does not offer is left out.
        seed: Decides what is done.
        tag: Tells these writes from what another run left on the disk; 32 bits.
    """

    def __init__(  # noqa: PLR0913 - the knobs of a load
        self,
        guest: Guest,
        history: History,
        *,
        first: int = 0,
        sectors: int = 64,
        depth: int = 16,
        longest: int = 8,
        mix: Mapping[Kind, int] = MIX,
        seed: int = 0,
        tag: int = 0,
    ) -> None:
        config = guest.config()
        self._block = max(config.blk_size, SECTOR_SIZE) // SECTOR_SIZE
        self._guest, self.history = guest, history
        self._first = first
        self._blocks = min(sectors, config.capacity - first) // self._block
        self._depth, self._longest = depth, max(longest // self._block, 1)
        if self._blocks < 1 or first % self._block:
            raise GuestError(f"{sectors} sectors from {first} are no blocks of this disk")
        self._mix = {kind: n for kind, n in mix.items() if self._can(kind)}
        self._random = random.Random(seed)  # noqa: S311 - load, not secrets
        self._tag = tag or seed + 1
        self._flying: list[tuple[BlkTicket, Operation]] = []
        self.writes = 0
        """Writes that were begun; the number of the last one."""

    @property
    def in_flight(self) -> int:
        """Return how many requests are."""
        return len(self._flying)

    def fill(self) -> None:
        """Write all sectors that are used, so that it is known what they hold."""
        for at in range(0, self._blocks, self._longest):
            blocks = min(self._longest, self._blocks - at)
            self._begin(self._write(self._first + at * self._block, blocks * self._block))
            self._take_turns()
        self.finish()

    def run(self, requests: int) -> None:
        """
        Make so many requests; those that are left in flight go on.

        Raises:
            GuestError: As of ``Guest.wait``; what is in flight stays so.
        """
        for _ in range(requests):
            self._begin(self._next())
            self._take_turns()

    def finish(self) -> None:
        """Wait for everything in flight (see ``run``)."""
        while self._flying:
            self._wait()

    def read_all(self) -> None:
        """Read all sectors that are used, once nothing is in flight (see ``run``)."""
        self.finish()
        for at in range(0, self._blocks, self._longest):
            count = min(self._longest, self._blocks - at) * self._block
            self._begin(Request.read(self._first + at * self._block, count * SECTOR_SIZE))
            self._take_turns()
        self.finish()

    def power_cut(self) -> None:
        """Note that the power failed and forget what was in flight; then go on, or read all."""
        self._flying.clear()
        self.history.power_cut()

    def _can(self, kind: Kind) -> bool:
        if kind in {Kind.WRITE, Kind.ZEROES, Kind.DISCARD} and self._guest.features & vb.F_RO:
            return False
        needs = _NEEDS.get(kind, 0)
        return kind is not Kind.OTHER and self._guest.features & needs == needs

    def _next(self) -> Request:
        kind = self._random.choices(list(self._mix), list(self._mix.values()))[0]
        start = self._random.randrange(self._blocks)
        blocks = min(self._random.randint(1, self._longest), self._blocks - start)
        first, count = self._first + start * self._block, blocks * self._block
        if kind is Kind.WRITE:
            return self._write(first, count)
        if kind is Kind.READ:
            return Request.read(first, count * SECTOR_SIZE)
        if kind is Kind.DISCARD:
            return Request.discard([Range(first, count)])
        if kind is Kind.ZEROES:
            return Request.write_zeroes([Range(first, count)])
        return Request.flush()

    def _write(self, first: int, count: int) -> Request:
        self.writes += 1
        return Request.write(first, stamps(self._tag, self.writes, first, count))

    def _begin(self, request: Request) -> None:
        queue = self._random.randrange(len(self._guest.queues))
        begun = self.history.begin(request, queue=queue)
        self._flying.append((self._guest.submit(request, queue=queue), begun))

    def _take_turns(self) -> None:
        """Note what is done; wait where that is too little."""
        self._collect()
        while len(self._flying) >= self._depth:
            self._wait()

    def _wait(self) -> None:
        self._guest.wait(self._flying[0][0])
        self._collect()

    def _collect(self) -> None:
        for queue in self._guest.queues:
            queue.reap()
        left = []
        for ticket, begun in self._flying:
            if ticket.done:
                completion = self._guest.wait(ticket)
                self.history.end(begun, completion.status, completion.data)
            else:
                left.append((ticket, begun))
        self._flying = left
