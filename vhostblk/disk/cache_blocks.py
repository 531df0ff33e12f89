"""
Blocks in memory, the one that was used last at the end, and which of them are dirty.

No I/O; nothing here knows a disk.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from vhostblk.disk.steps import Cursor

Run = tuple[int, int]
"""A block, and the one behind the last."""


class Blocks:
    """
    What a cache holds.

    Args:
        block: Bytes of a block; the last one of a disk may have less.
        end: Bytes of the disk.
    """

    def __init__(self, block: int, end: int = 0) -> None:
        self.block = block
        self.end = end
        self.held = 0
        """Bytes."""
        self.short = -1
        """A dirty block of which the disk below has more, as that has become longer."""
        self.dirty_bytes = 0
        self._data: OrderedDict[int, bytearray] = OrderedDict()
        self._dirty: set[int] = set()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._data)

    def covering(self, offset: int, length: int) -> Run:
        """Return the blocks that a range is in."""
        return offset // self.block, -(-(offset + length) // self.block)

    def get(self, number: int) -> bytearray | None:
        """Return what a block holds, which may be changed; it is the one that was used last."""
        data = self._data.get(number)
        if data is not None:
            self._data.move_to_end(number)
        return data

    def has(self, number: int) -> bool:
        """Tell whether a block is here; that is no use of it."""
        return number in self._data

    def put(self, number: int, data: bytearray) -> None:
        """Hold a block, in place of what was held of it; dirty if that was."""
        old = self._data.pop(number, None)
        self._data[number] = data
        self.held += len(data) - (0 if old is None else len(old))

    def put_bytes(self, offset: int, data: memoryview, *, partly: bool) -> None:
        """
        Have bytes here.

        Args:
            offset: First byte.
            data: Those.
            partly: Every block of which this is a part is here; False: where it is not, leave it.
        """
        at, end = offset, offset + len(data)
        while at < end:
            number = at // self.block
            start = number * self.block
            stop = min(start + self.block, end)
            piece = data[at - offset : stop - offset]
            if self.is_part(number, offset, len(data)):
                old = self.get(number)
                assert old is not None or not partly, "filled before"  # noqa: S101 - our own
                if old is not None:
                    old[at - start : stop - start] = piece
            else:
                self.put(number, bytearray(piece))
            at = stop

    def copy_out(self, number: int, offset: int, end: int, rest: Cursor) -> int:
        """
        Copy what is wanted of a block that is here.

        Args:
            number: Which.
            offset: First byte that is wanted, of the disk.
            end: The byte behind the last, which may be in another block.
            rest: What is to be filled.

        Returns:
            The byte behind what was copied.
        """
        start, data = number * self.block, self.get(number)
        assert data is not None, "nobody drops what is in use"  # noqa: S101 - our own promise
        stop = min(start + len(data), end)
        at = offset - start
        with memoryview(data) as whole:
            for view in rest.take(stop - offset):
                view[:] = whole[at : at + len(view)]
                at += len(view)
        return stop

    def is_part(self, number: int, offset: int, length: int) -> bool:
        """Tell whether a range leaves out some of a block it begins or ends in."""
        start = number * self.block
        return start < offset or min(start + self.block, self.end) > offset + length

    def resize(self, end: int) -> None:
        """Heed that the disk has another end: what is behind it, or was the last, is forgotten."""
        if end == self.end:
            return
        first, self.end = min(end, self.end) // self.block, end
        for number in [n for n in self._data if n >= first]:
            kept = self._data[number][: max(end - number * self.block, 0)]
            dirty = number in self._dirty
            self.drop(number)
            if dirty and kept:  # of one that was the last the disk below has more now
                self.put(number, kept)
                self.soil(number)
                self.short = (
                    number if len(kept) < min(self.block, end - number * self.block) else -1
                )

    def soil(self, number: int) -> None:
        """Heed that the disk below has something else."""
        if number not in self._dirty:
            self._dirty.add(number)
            self.dirty_bytes += len(self._data[number])

    def clean(self, numbers: Iterable[int]) -> None:
        """Heed that the disk below has the same."""
        for number in numbers:
            if number in self._dirty:
                self._dirty.remove(number)
                self.dirty_bytes -= len(self._data[number])

    def is_dirty(self, number: int) -> bool:
        """Tell whether the disk below has something else."""
        return number in self._dirty

    def drop(self, number: int) -> None:
        """Forget a block, dirty or not."""
        self.clean([number])
        data = self._data.pop(number, None)
        if data is not None:
            self.held -= len(data)

    def drop_clean(self, may: Callable[[int], bool] = lambda _: True) -> int:
        """Forget all that are not dirty and *may* be; return how many bytes those were."""
        before = self.held
        for number in [n for n in self._data if n not in self._dirty and may(n)]:
            self.drop(number)
        return before - self.held

    def oldest(self, count: int) -> list[int]:
        """Return some that were not used for longest."""
        return [number for number, _ in zip(self._data, range(count), strict=False)]

    def within(self, first: int, end: int) -> list[int]:
        """Return those of a range that are here, in order."""
        if end - first < len(self._data):
            return [number for number in range(first, end) if number in self._data]
        return sorted(number for number in self._data if first <= number < end)

    def dirty(self, first: int = 0, end: int | None = None) -> list[int]:
        """Return those of a range that are dirty, in order."""
        if end is not None and end - first < len(self._dirty):
            return [number for number in range(first, end) if number in self._dirty]
        return sorted(n for n in self._dirty if first <= n and (end is None or n < end))

    def around(self, number: int, most: int) -> Run:
        """Return dirty blocks without a gap around one, so many at most."""
        first, end = number, number + 1
        while end - first < most and first - 1 in self._dirty:
            first -= 1
        while end - first < most and end in self._dirty:
            end += 1
        return first, end

    def joined(self, first: int, end: int) -> bytes:
        """Return what blocks hold, all of which are here."""
        return b"".join(self._data[number] for number in range(first, end))


def runs(numbers: Iterable[int], most: int) -> Iterator[Run]:
    """Yield sorted blocks as few runs of so many at most."""
    first = end = -1
    for number in numbers:
        if number != end or end - first >= most:
            if end > first >= 0:
                yield first, end
            first = number
        end = number + 1
    if end > first >= 0:
        yield first, end
