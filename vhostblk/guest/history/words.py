"""What the contents of a sector are called in a message."""

from collections.abc import Iterator, Sequence

from vhostblk.guest.history.record import ZEROES, Kind, Operation, sector_steps
from vhostblk.guest.history.register import Step
from vhostblk.spec.virtio_blk import SECTOR_SIZE

_SHOWN_BYTES = 16
_CHANGES = {Kind.WRITE, Kind.ZEROES, Kind.DISCARD}


class Names:
    """
    Tells by whom a sector's contents were written.

    Args:
        operations: All there were.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._writers: dict[bytes, list[tuple[int, Operation]]] | None = None

    def describe(self, sector: int, value: bytes) -> str:
        """Say what *value* is, found in *sector*."""
        if value == ZEROES:
            return "zeros"
        places = self._places().get(value, [])
        if here := next((one for at, one in places if at == sector), None):
            return f"what #{here.number} wrote"
        if places:
            at, one = places[0]
            return f"what #{one.number} wrote to sector {at} (misdirected?)"
        return self._torn(sector, value) or f"bytes nobody wrote ({value[:_SHOWN_BYTES].hex()}…)"

    def candidates(self, sector: int, read: Step) -> Iterator[Operation]:
        """Yield the writes that *read* could have returned, as far as each other one tells."""
        changes = [
            one
            for one in self._operations
            if one.kind in _CHANGES and any(sector in span for span in one.spans)
        ]
        done = [one for one in changes if one.ok and one.end is not None and one.end < read.begin]
        newest = max((one.begin for one in done if one.kind is not Kind.DISCARD), default=0)
        for one in changes:
            gone = one.ok and one.end is not None and one.end < newest
            if one.begin < read.end and not gone:
                yield one

    def _places(self) -> dict[bytes, list[tuple[int, Operation]]]:
        if self._writers is None:
            self._writers = {}
            for sector, one, value in sector_steps(list(self._operations)):
                if one.kind is Kind.WRITE:
                    self._writers.setdefault(value, []).append((sector, one))
        return self._writers

    def _torn(self, sector: int, value: bytes) -> str | None:
        whole = {ZEROES: "zeros"}
        for written, places in self._places().items():
            for at, one in places:
                if at == sector:
                    whole[written] = f"what #{one.number} wrote"
        begin = max(whole, key=lambda one: _common(one, value))
        end = max(whole, key=lambda one: _common(one[::-1], value[::-1]))
        cut = _common(begin, value)
        if not cut or cut + _common(end[::-1], value[::-1]) < SECTOR_SIZE:
            return None
        return f"{cut} bytes of {whole[begin]}, then {whole[end]} (torn)"


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes two strings begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(other))
