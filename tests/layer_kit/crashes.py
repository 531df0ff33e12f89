"""What is left of a file and of a disk when the host crashes: anything that was not made stable."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from layer_kit.disks import SECTOR, Plain
from vhostblk.disk.store import Store


@dataclass(frozen=True, slots=True)
class Event:
    """
    Something that changes a medium.

    Args:
        where: Which medium.
        offset: First byte.
        length: Bytes; of a resize, all there are then.
        data: What is written; None: zeroes.
        kind: "write", "resize", or "sync": all before is stable.
    """

    where: str
    kind: str
    offset: int = 0
    length: int = 0
    data: bytes | None = None

    def apply(self, medium: bytearray, keep: Callable[[], bool] = lambda: True) -> None:
        """Do it, sector by sector, as far as *keep* has it."""
        if self.kind == "resize":
            if keep():
                del medium[self.length :]
                medium.extend(bytes(self.length - len(medium)))
        elif self.kind == "write":
            end = self.offset + self.length
            medium.extend(bytes(max(end - len(medium), 0)))
            data = bytes(self.length) if self.data is None else self.data
            at = self.offset
            while at < end:
                stop = min((at // SECTOR + 1) * SECTOR, end)
                if keep():
                    medium[at:stop] = data[at - self.offset : stop - self.offset]
                at = stop


class Recorded(Store):
    """A scratch file whose changes are noted."""

    events: list[Event]

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Note, and write."""
        data = b"".join(views)
        self.events.append(Event("scratch", "write", offset, len(data), data))
        super().write(offset, views)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Note, and clear."""
        self.events.append(Event("scratch", "write", offset, length))
        super().zero(offset, length, unmap=unmap)

    def resize(self, length: int) -> None:
        """Note, and cut or add."""
        self.events.append(Event("scratch", "resize", length=length))
        super().resize(length)

    def sync(self) -> None:
        """Note."""
        super().sync()
        self.events.append(Event("scratch", "sync"))


class RecordedDisk(Plain):
    """A disk whose changes are noted."""

    def __init__(self, data: bytes, events: list[Event]) -> None:
        super().__init__(data)
        self.events = events

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Note, and write."""
        data = b"".join(views)
        self.events.append(Event("below", "write", offset, len(data), data))
        super().write(offset, views)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Note, and clear."""
        self.events.append(Event("below", "write", offset, length))
        super().write_zeroes(offset, length, unmap=unmap)

    def resize(self, size: int) -> None:
        """Note, and cut or add; stable at once, as a size is."""
        super().resize(size)
        self.events.extend([Event("below", "resize", length=size), Event("below", "sync")])

    def flush(self) -> None:
        """Note."""
        super().flush()
        self.events.append(Event("below", "sync"))


def crashed(
    events: Sequence[Event], where: str, start: bytes, rng: random.Random | None
) -> bytearray:
    """
    Return what a medium has after a crash.

    Args:
        events: Up to it.
        where: Which medium.
        start: What it had at first.
        rng: Chooses what is lost, each sector by itself; None: a process was killed, and nothing
            is.
    """
    mine = [event for event in events if event.where == where]
    last = max((i for i, event in enumerate(mine) if event.kind == "sync"), default=-1)
    chance = 0.0 if rng is None else rng.choice((0.0, 0.2, 0.5, 0.9, 1.0))
    medium = bytearray(start)
    for i, event in enumerate(mine):
        if rng is None or i <= last:
            event.apply(medium)
        else:
            event.apply(medium, lambda: rng.random() >= chance)
    return medium
