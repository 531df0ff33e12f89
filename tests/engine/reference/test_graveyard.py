import pytest

from vhostblk.blk.request import Operation
from vhostblk.engine.reference.graveyard import Graveyard
from vhostblk.spec.virtio_blk import RequestType

IN, OUT, FLUSH = RequestType.IN, RequestType.OUT, RequestType.FLUSH
DISCARD, ZEROES = RequestType.DISCARD, RequestType.WRITE_ZEROES


@pytest.mark.parametrize("dead", [OUT, DISCARD, ZEROES])
@pytest.mark.parametrize("new", [OUT, DISCARD, ZEROES])
@pytest.mark.parametrize(
    ("offset", "length", "blocked"),
    [(0, 4096, False), (0, 4097, True), (8191, 1, True), (8192, 1, False), (5000, 10, True)],
)
def test_changes_of_the_same_bytes_are_blocked(
    *, dead: RequestType, new: RequestType, offset: int, length: int, blocked: bool
) -> None:
    """Whatever kind of change is dead, one that shares a byte with it waits."""
    graveyard = Graveyard()
    graveyard.bury(Operation(dead, 4096, 4096), 0)
    assert graveyard.blocks(Operation(new, offset, length)) is blocked


@pytest.mark.parametrize(("dead", "new"), [(IN, OUT), (OUT, IN), (FLUSH, OUT), (OUT, FLUSH)])
def test_what_changes_nothing_blocks_nothing(dead: RequestType, new: RequestType) -> None:
    """Reads and flushes neither wait nor are waited for."""
    graveyard = Graveyard()
    graveyard.bury(Operation(dead, 0, 4096), 0)
    assert not graveyard.blocks(Operation(new, 0, 4096))


def test_equal_graves_are_two() -> None:
    """Two dead writes of the same bytes: the second still blocks when the first has left."""
    graveyard = Graveyard()
    operation = Operation(OUT, 0, 512)
    first = graveyard.bury(operation, 1)
    graveyard.bury(operation, 1)
    graveyard.leave(first)
    assert graveyard.count() == 1
    assert graveyard.blocks(operation)
