"""
What a disk with a volatile write cache may hold when its power goes.

The rules, sector by sector, from the promises that devices make (virtio 1.3, 5.2.6.2; SCSI
SYNCHRONIZE CACHE, NVMe Flush):

* A FLUSH that has completed makes stable what had completed before the FLUSH was submitted.
* A write with FUA is stable when it completes.
* What is stable stays, until something that was submitted after it has completed is written over
  it.
* Anything else that was submitted may be there, or not, each sector by itself.
* Of writes to one sector that were in flight together, any may be the last.

So a sector holds one of the writes to it behind which no stable one lies, or, where there is no
stable one, what it held at first.  That the older of two completed writes lands behind the newer
is no case of its own: it looks like the loss of the newer one.  See "Power cuts" in the
explanations for what real drives do.

Pure: no I/O, and no clock but the order of the calls.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vhostblk.disk.ranges import Index, Range, both, without

Data = bytes | memoryview

_SIZE = 1024
"""Bytes of what is noted of a change, beside its data; measured: 0.7 KiB."""


class Kind(StrEnum):
    """What changes a disk."""

    WRITE = "write"
    ZEROES = "zeroes"
    UNMAP = "unmap"
    """Zeroes that may be a hole."""
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class Change:
    """
    A request that changes the disk.

    Args:
        number: No other's, and larger than those of what began before.
        offset: First byte.
        length: Bytes, at least 1.
        data: That many; None: it reads as zeroes.
        kind: What was asked.
        fua: Stable when it completes.
    """

    number: int
    offset: int
    length: int
    data: Data | None
    kind: Kind = Kind.WRITE
    fua: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """
    A part of a change that reaches the medium.

    Args:
        change: Of which.
        start: First byte, on the disk.
        end: The one behind the last.
    """

    change: Change
    start: int
    end: int

    @property
    def data(self) -> memoryview | None:
        """What is stored there; None: zeroes."""
        whole, at = self.change.data, self.change.offset
        return None if whole is None else memoryview(whole)[self.start - at : self.end - at]


@dataclass(slots=True, eq=False)
class Held:
    """
    A change that is not, or not for certain, what the medium holds.

    Args:
        change: Which.
        begin: When it was submitted.
        end: When it completed; None: it is in flight.
        left: What of it nothing stable was written over since.
        rivals: Those that overlap it and were in flight together with it.
        promised: It completed well.
        base: What of it the medium got; there, it or something newer is stable.
        stable: It will be there, or a rival.
    """

    change: Change
    begin: int
    left: list[Range]
    end: int | None = None
    rivals: list["Held"] = field(default_factory=list)
    base: list[Range] = field(default_factory=list)
    promised: bool = False
    stable: bool = False

    @property
    def number(self) -> int:
        """Its change's."""
        return self.change.number

    @property
    def offset(self) -> int:
        """Its change's."""
        return self.change.offset

    @property
    def length(self) -> int:
        """Its change's."""
        return self.change.length

    def pieces(self, ranges: Iterable[Range]) -> list[Piece]:
        """Return those parts of it."""
        return [Piece(self.change, start, end) for start, end in ranges]


class Cache:
    """A volatile write cache: what was submitted, and is not certain to be stable."""

    def __init__(self) -> None:
        self._now = 0
        self._held: Index[Held] = Index()
        self._in_flight: dict[int, Held] = {}
        self.size = 0
        """Bytes of memory that what is held takes, about."""

    @property
    def now(self) -> int:
        """The time, which goes on by one with each call."""
        return self._now

    @property
    def held(self) -> Sequence[Held]:
        """What may be there or not, in the order it began."""
        return tuple(self._held)

    def begin(self, change: Change) -> None:
        """A change is submitted."""
        held = Held(change, self._tick(), [(change.offset, change.offset + change.length)])
        for other in self._in_flight.values():
            if _overlap(held, other):
                held.rivals.append(other)
                other.rivals.append(held)
        self._in_flight[change.number] = held
        self._held.add(held)
        self.size += _size(change)

    def end(self, number: int) -> list[Piece]:
        """
        Complete a change.

        Returns:
            What is stable from now on, in order: to be written to the medium.
        """
        held = self._ended(number)
        held.promised = True
        return self._settle(held) if held.change.fua else []

    def fail(self, number: int) -> None:
        """Complete a change by an error: it is promised to nobody, and may be there."""
        self._ended(number)

    def flush(self) -> int:
        """Submit a flush; return what `flushed` is to be given."""
        return self._tick()

    def flushed(self, mark: int) -> list[Piece]:
        """
        Complete a flush.

        Args:
            mark: Which, from `flush`.

        Returns:
            As `end` does.
        """
        self._tick()
        stable = [h for h in self._held if h.end is not None and h.end < mark and h.promised]
        stable.sort(key=lambda held: held.end or 0)
        return [piece for held in stable if not held.stable for piece in self._settle(held)]

    def write_back(self, number: int) -> list[Piece]:
        """Have one that has completed reach the medium early, as caches that are full do."""
        held = self._held.get(number)
        return [] if held is None or held.end is None or held.stable else self._settle(held)

    def over(self, start: int, end: int) -> list[Piece]:
        """Return what a read of a range finds of what is held, the last one last."""
        found = self._held.over(start, end)
        return [p for held in found for p in held.pieces(both(held.left, [(start, end)]))]

    def _tick(self) -> int:
        self._now += 1
        return self._now

    def _ended(self, number: int) -> Held:
        held = self._in_flight.pop(number)
        held.end = self._tick()
        return held

    def _settle(self, held: Held) -> list[Piece]:
        """Make one stable: return what of it the medium has now for certain."""
        for other in self._held.over(held.offset, held.offset + held.length):
            if other.end is not None and other.end < held.begin:
                self._keep(other, without(other.left, held.left))
        # Which of two that were in flight together is the last, nobody knows: the medium gets the
        # one that was stable first, and the other stays what may be there as well.
        base = held.left
        for rival in held.rivals:
            base = without(base, rival.base)
        held.base, held.stable, held.rivals = base, True, []
        self._keep(held, without(held.left, base))
        return held.pieces(base)

    def _keep(self, held: Held, left: list[Range]) -> None:
        held.left = left
        if not left and held.number in self._held:
            self._held.remove(held)
            self.size -= _size(held.change)
            held.rivals = []


def _size(change: Change) -> int:
    return _SIZE + (0 if change.data is None else change.length)


def _overlap(one: Held, other: Held) -> bool:
    return one.offset < other.offset + other.length and other.offset < one.offset + one.length
