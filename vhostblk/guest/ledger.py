"""
Load that can be checked: every block holds the number of the write that was last there.

No two requests in flight overlap, one of which writes; so of every block that nobody is writing it
is known what it holds, whatever becomes of the back-end meanwhile: the last write that was told of
as done, and neither an older one, which would have been applied again, nor none.
"""

import random
import struct
from dataclasses import dataclass

from vhostblk.guest.blk import BlkTicket, Request
from vhostblk.guest.errors import GuestError
from vhostblk.guest.guest import Guest
from vhostblk.spec.virtio_blk import SECTOR_SIZE, RequestType, Status

STAMP = struct.Struct("<QQ")
BLOCK = 4096
LONGEST = 4
"""Blocks of a request, at most."""


class LedgerError(GuestError):
    """A request failed, or a block holds what it must not hold."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request in flight, on blocks from *first* on; *number* of the write, 0 of a read."""

    ticket: BlkTicket
    number: int
    blocks: range


class Ledger:
    """
    Writes with sequence numbers, reads and flushes.

    Args:
        guest: Who has them; may lose its back-end and find it again.
        blocks: How many blocks of 4 KiB at the start of the disk, all zeros, are used.
        seed: Decides what is done.
    """

    def __init__(self, guest: Guest, *, blocks: int = 64, seed: int = 0) -> None:
        self._guest = guest
        self._random = random.Random(seed)  # noqa: S311 - load, not secrets
        self._holds = [0] * blocks
        self._busy: set[int] = set()
        self._flying: list[_Entry] = []
        self.writes = 0
        """Writes that were begun; the number of the last one."""

    @property
    def in_flight(self) -> int:
        """Return how many requests are."""
        return len(self._flying)

    def fill(self, depth: int) -> None:
        """Begin requests, on all queues, until *depth* are in flight or no block is left."""
        queues = len(self._guest.queues)
        for _ in range(4 * depth):
            if len(self._flying) >= depth:
                return
            first = self._random.randrange(len(self._holds))
            last = min(first + self._random.randint(1, LONGEST), len(self._holds))
            blocks = range(first, last)
            if not self._busy.intersection(blocks):
                self._begin(blocks, self._random.randrange(queues))

    def settle(self) -> None:
        """
        Wait for the oldest request, and check all that are done.

        Raises:
            LedgerError: One failed, or read what was not there.
            GuestError: As of ``Guest.wait``; what is in flight stays so.
        """
        if self._flying:
            self._guest.wait(self._flying[0].ticket)
        for entry in [e for e in self._flying if e.ticket.done]:
            self._check(entry)
            self._flying.remove(entry)
            self._busy.difference_update(entry.blocks)

    def settle_all(self) -> None:
        """Wait for everything in flight (see ``settle``)."""
        while self._flying:
            self.settle()

    def verify(self) -> None:
        """Read every block that nobody is writing, and check it (see ``settle``)."""
        self.settle_all()
        for first in range(0, len(self._holds), LONGEST):
            blocks = range(first, min(first + LONGEST, len(self._holds)))
            data = self._guest.read(first * BLOCK // SECTOR_SIZE, len(blocks) * BLOCK)
            self.compare(data, first)

    def compare(self, data: bytes, first: int = 0) -> None:
        """
        Check what the disk holds from block *first* on, with nothing in flight there.

        Raises:
            LedgerError: It is not what it must be.
        """
        for at in range(0, len(data), BLOCK):
            block = first + at // BLOCK
            found, expected = data[at : at + BLOCK], contents(self._holds[block], block)
            if found != expected:
                raise LedgerError(
                    f"block {block} holds {_describe(found)} instead of write {self._holds[block]}"
                )

    def _begin(self, blocks: range, queue: int) -> None:
        sector, number = blocks[0] * BLOCK // SECTOR_SIZE, 0
        kind = self._random.choices(["write", "read", "flush"], [6, 3, 1])[0]
        if kind == "write":
            number = self.writes + 1
            data = b"".join(contents(number, block) for block in blocks)
            request = Request.write(sector, data)
        elif kind == "read":
            request = Request.read(sector, len(blocks) * BLOCK)
        else:
            request, blocks = Request.flush(), range(0)
        ticket = self._guest.submit(request, queue=queue)
        self.writes = max(self.writes, number)
        self._busy.update(blocks)
        self._flying.append(_Entry(ticket, number, blocks))

    def _check(self, entry: _Entry) -> None:
        completion = self._guest.wait(entry.ticket)
        request = entry.ticket.request
        if completion.status != Status.OK:
            raise LedgerError(f"{request} ended with status {completion.status:#x}")
        if request.type == RequestType.IN:
            self.compare(completion.data, entry.blocks[0])
        for block in entry.blocks if entry.number else ():
            self._holds[block] = entry.number


def contents(number: int, block: int) -> bytes:
    """Return what write *number* puts into *block*; 0: nothing was ever written there."""
    return STAMP.pack(number, block if number else 0) * (BLOCK // STAMP.size)


def _describe(found: bytes) -> str:
    number, block = STAMP.unpack(found[: STAMP.size])
    if found == contents(number, block):
        return f"write {number} to block {block}" if number else "zeros"
    return "parts of several writes"
