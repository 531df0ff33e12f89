"""
What the front-end has told of its IOMMU: a bounded map from IOVA to front-end address.

Pure arithmetic.  Who asks for what is missing, and whose rings run meanwhile, is the server's
affair; how the map meets the memory regions is `AddressSpace.build`.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EINVAL, ENOSPC
from itertools import count

from vhostblk.errors import Refused
from vhostblk.memory.regions import RegionTable
from vhostblk.memory.space import Access, AddressSpace, Piece, Translation

MAX_ENTRIES = 2048
"""Translations kept, coalesced ones counted once; as many as DPDK keeps."""
MOST_ENTRIES = 64 * MAX_ENTRIES
"""Kept where waiting chains need them all: what 64 queues with a chain each can need."""
_TOP = 1 << 64

Range = tuple[int, int]
"""(first IOVA, length in bytes)."""
EVERYWHERE: tuple[Piece, ...] = ((0, _TOP - 1),)
"""All memory of this process."""


def checked(table: RegionTable, *, iova: int, size: int, uaddr: int, perm: int) -> Translation:
    """
    Make a translation of what an update says.

    Args:
        table: Memory that *uaddr* must lie in, all of it in one region.
        iova: First byte, as the driver will write it.
        size: Bytes.
        uaddr: The same byte in the front-end.
        perm: 1 to 3, numbered as `Access`.

    Raises:
        Refused: It is none.

    Spec: vhost-user, "IOTLB message"; ``struct vhost_iotlb_msg`` of <linux/vhost_types.h>.
    """
    if size == 0 or iova + size >= _TOP:
        # The very last byte is left out: the ends of all ranges fit into 64 bits then.
        raise Refused(EINVAL, f"no translation has {size:#x} bytes at {iova:#x}")
    if not 1 <= perm <= Access.READ | Access.WRITE:
        raise Refused(EINVAL, f"a translation with permission {perm}")
    region = table.at_uva(uaddr)
    if region is None or uaddr + size > region.place.uva + region.place.size:
        raise Refused(EINVAL, f"a translation to {size:#x} bytes at {uaddr:#x}, in no one region")
    return Translation(iova=iova, size=size, uaddr=uaddr, access=Access(perm))


@dataclass(frozen=True, slots=True)
class _Row:
    """A translation and when it came, or any part of it."""

    what: Translation
    age: int

    @property
    def end(self) -> int:
        return self.what.iova + self.what.size

    def cut(self, start: int, end: int) -> "_Row":
        """Return the part that lies in [start, end)."""
        skip = start - self.what.iova
        part = Translation(
            iova=start, size=end - start, uaddr=self.what.uaddr + skip, access=self.what.access
        )
        return _Row(part, self.age)

    def continues(self, low: "_Row") -> bool:
        """Whether *low* ends where this begins, on both sides and with the same rights."""
        below, here = low.what, self.what
        return (
            low.end == here.iova
            and below.uaddr + below.size == here.uaddr
            and below.access == here.access
        )

    def join(self, low: "_Row") -> "_Row":
        """Return *low* and this as one."""
        what = Translation(
            iova=low.what.iova,
            size=low.what.size + self.what.size,
            uaddr=low.what.uaddr,
            access=low.what.access,
        )
        return _Row(what, max(low.age, self.age))


def _start(row: _Row) -> int:
    return row.what.iova


class Iotlb:
    """
    Translations, disjoint and sorted; the newest wins.

    Args:
        limit: How many are kept, beside those that waiting chains need.
        most: How many are kept at most.
    """

    def __init__(self, limit: int = MAX_ENTRIES, most: int = MOST_ENTRIES) -> None:
        self._limit = limit
        self._most = most
        self._rows: list[_Row] = []
        self._ages = count()
        self._dropped = False  # something that nobody has invalidated

    def __len__(self) -> int:
        """Return how many translations are kept."""
        return len(self._rows)

    @property
    def translations(self) -> tuple[Translation, ...]:
        """Return what is known, in the order of the IOVAs."""
        return tuple(row.what for row in self._rows)

    def update(self, new: Translation, *, keep: Sequence[Range] = ()) -> None:
        """
        Take a translation in; where something was known already, it is forgotten.

        Args:
            new: From `checked`.
            keep: IOVAs that waiting chains need: what translates any of them is never evicted,
                though it be more than the limit.

        Raises:
            Refused: There is no room at all, and everything is to be kept.
        """
        self._forget(new.iova, new.iova + new.size)
        at = bisect_left(self._rows, new.iova, key=_start)
        self._rows.insert(at, _Row(new, next(self._ages)))
        self._coalesce(at)
        if len(self._rows) <= self._limit:
            return
        self._evict((*keep, (new.iova, new.size)))
        if len(self._rows) > self._most:
            self._forget(new.iova, new.iova + new.size)
            raise Refused(ENOSPC, f"more than {self._most} translations are needed at once")

    def _coalesce(self, at: int) -> None:
        for low in (at, at - 1):
            if 0 <= low < len(self._rows) - 1 and self._rows[low + 1].continues(self._rows[low]):
                joined = self._rows[low + 1].join(self._rows[low])
                self._rows[low : low + 2] = [joined]

    def _evict(self, keep: Sequence[Range]) -> None:
        """Forget the oldest, as many as are too many, but none of what touches *keep*."""
        spared = _merged(keep)
        too_many = len(self._rows) - self._limit
        for row in sorted(self._rows, key=lambda row: row.age):
            if too_many <= 0:
                break
            if not _touches(row, spared):
                self._dropped = True
                del self._rows[bisect_left(self._rows, row.what.iova, key=_start)]
                too_many -= 1

    def invalidate(self, iova: int, size: int, *, keep: Sequence[Range] = ()) -> tuple[Range, ...]:
        """
        Forget a range.

        Args:
            iova: Its first byte.
            size: Bytes, at least 1; a range that leaves the top of the address space goes on at
                0.  QEMU ends one exactly there.
            keep: As for `update`: a hole in the middle of a translation makes two of it, which may
                be one too many.

        Returns:
            The range without its wrap: one or two pieces.
        """
        ranges = _unwrapped(iova, size)
        for start, length in ranges:
            self._forget(start, start + length)
        if len(self._rows) > self._limit:
            self._evict(keep)
        return ranges

    def _forget(self, start: int, end: int) -> None:
        first = bisect_right(self._rows, start, key=_start) - 1
        if first < 0 or self._rows[first].end <= start:
            first += 1
        after = bisect_left(self._rows, end, key=_start)
        if first >= after:
            return
        left, right = self._rows[first], self._rows[after - 1]
        rest = [left.cut(left.what.iova, start)] if left.what.iova < start else []
        if end < right.end:
            rest.append(right.cut(end, right.end))
        self._rows[first:after] = rest

    def memory(self, iova: int, size: int, table: RegionTable) -> Sequence[Piece]:
        """
        Say where in this process a range can be that a request in flight uses.

        Args:
            iova: Its first byte.
            size: Bytes, at least 1; may wrap.
            table: What the translations lead to.

        Returns:
            Sorted and disjoint; `EVERYWHERE` where some of the range is not known any more, as
            what is kept is bounded.
        """
        known: list[Translation] = []
        for start, length in _unwrapped(iova, size):
            if self._dropped and self.gaps(start, length, Access(0)):
                return EVERYWHERE
            first = max(bisect_right(self._rows, start, key=_start) - 1, 0)
            after = bisect_left(self._rows, start + length, key=_start)
            known += [
                row.cut(max(row.what.iova, start), min(row.end, start + length)).what
                for row in self._rows[first:after]
                if row.end > start
            ]
        segments = AddressSpace.build(table, known).segments
        return _merged([(one.host, one.length) for one in segments])

    def clear(self) -> None:
        """Forget everything, as at a start: the front-end tells of nothing that went before."""
        self._rows.clear()
        self._dropped = False

    def drop(self) -> None:
        """Forget everything, though requests may go on with it."""
        self._dropped |= bool(self._rows)
        self._rows.clear()

    def gaps(self, iova: int, length: int, access: Access) -> list[Range]:
        """
        Return what of a range is not known, or not with these rights, in order.

        Args:
            iova: First byte.
            length: Bytes; what is beyond 64 bits is left out.
            access: Needed all over.
        """
        found: list[Range] = []
        at, end = iova, min(iova + length, _TOP)
        row = max(bisect_right(self._rows, iova, key=_start) - 1, 0)
        for known in self._rows[row:]:
            if known.what.iova >= end:
                break
            if known.end <= at or access not in known.what.access:
                continue
            if known.what.iova > at:
                found.append((at, known.what.iova - at))
            at = known.end
        if at < end:
            found.append((at, end - at))
        return found


def _unwrapped(iova: int, size: int) -> tuple[Range, ...]:
    end = iova + size
    return ((iova, size),) if end <= _TOP else ((iova, _TOP - iova), (0, end - _TOP))


def _merged(ranges: Sequence[Range]) -> list[Range]:
    """Return the same bytes as sorted ranges that do not meet."""
    merged: list[Range] = []
    for iova, length in sorted(ranges):
        if merged and iova <= sum(merged[-1]):
            start, before = merged.pop()
            iova, length = start, max(before, iova + length - start)  # noqa: PLW2901 - the sum
        merged.append((iova, length))
    return merged


def _touches(row: _Row, spared: Sequence[Range]) -> bool:
    """Tell whether a row meets one of some ranges, sorted and disjoint."""
    last = bisect_left(spared, row.end, key=lambda one: one[0]) - 1
    return last >= 0 and row.what.iova < sum(spared[last])


def meet(some: Sequence[Range], others: Sequence[Range]) -> bool:
    """Whether any of *some* has a byte in any of *others*."""
    return any(a < d + n and d < a + m for a, m in some for d, n in others)
