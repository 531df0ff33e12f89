"""
Requests that were cancelled but are still with the disk.

The guest has been told that they failed and may write the same blocks again: a late write of a
dead request must not overtake the new one.
"""

from vhostblk.blk.request import Operation
from vhostblk.spec.virtio_blk import RequestType

_CHANGES = frozenset((RequestType.OUT, RequestType.DISCARD, RequestType.WRITE_ZEROES))


class Grave:
    """
    One dead operation; known by itself, not by its values.

    Args:
        operation: What the disk may still do.
        name: Of the chain it came from.
    """

    def __init__(self, operation: Operation, name: int) -> None:
        self.operation = operation
        self.name = name


class Graveyard:
    """The dead of one device, of all its queues; used by the worker only, but for `count`."""

    def __init__(self) -> None:
        self._graves: set[Grave] = set()

    def count(self) -> int:
        """Return how many there are; legal at any time."""
        return len(self._graves)

    def bury(self, operation: Operation, name: int) -> Grave:
        """Take in an operation of the chain *name* that was cancelled."""
        grave = Grave(operation, name)
        self._graves.add(grave)
        return grave

    def leave(self, grave: Grave) -> None:
        """Forget an operation that its disk has returned."""
        self._graves.remove(grave)

    def blocks(self, operation: Operation) -> bool:
        """Say whether *operation* would change bytes that a dead one may still change."""
        return any(_clash(operation, grave.operation) for grave in self._graves)


def _clash(new: Operation, dead: Operation) -> bool:
    both_change = new.type in _CHANGES and dead.type in _CHANGES
    return (
        both_change
        and new.offset < dead.offset + dead.length
        and dead.offset < new.offset + new.length
    )
