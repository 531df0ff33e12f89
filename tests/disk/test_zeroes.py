"""The layer that notices zeroes."""

import asyncio
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.call import Calls, run
from vhostblk.disk.make import make
from vhostblk.disk.zeroes import Zeroes

SIZE = 1 << 18
BLOCK = 1024


class Noting(Disk):
    """A disk that notes what reaches it."""

    def __init__(self, max_write_zeroes: int = SIZE) -> None:
        self.data = bytearray(b"\xff" * SIZE)
        self.max_write_zeroes = max_write_zeroes
        self.calls: list[tuple[object, ...]] = []

    def info(self) -> DiskInfo:
        """Return what a test asks for."""
        return DiskInfo(
            size=SIZE, block_size=BLOCK, may_unmap=True, max_write_zeroes=self.max_write_zeroes
        )

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Give what is there."""
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Take it."""
        self.calls.append(("write", offset, sum(map(len, views))))
        data = b"".join(views)
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        """Note it."""
        self.calls.append(("flush",))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Note it, and do it."""
        self.calls.append(("zeroes", offset, length, unmap))
        self.data[offset : offset + length] = bytes(length)


class Plain(Noting):
    """One that cannot write zeroes."""

    write_zeroes = Disk.write_zeroes  # type: ignore[assignment]  # as if it had none


def opened(layer: object) -> Calls:
    calls = Calls(layer)
    asyncio.run(run(calls.open))
    return calls


def test_a_write_of_zeroes_is_handed_on_as_such() -> None:
    """In however many pieces; anything else stays a write."""
    disk = Noting()
    calls = opened(Zeroes(disk, unmap=True))
    zeroes = memoryview(bytes(70_000))
    calls.write(BLOCK, [zeroes[: BLOCK // 2], zeroes[: BLOCK // 2], zeroes[: 64 * BLOCK]])
    calls.write(0, [memoryview(bytes(BLOCK - 1) + b"x")])
    calls.write(BLOCK, [memoryview(b"x" + bytes(BLOCK - 1))])
    assert disk.calls == [
        ("zeroes", BLOCK, 65 * BLOCK, True),
        ("write", 0, BLOCK),
        ("write", BLOCK, BLOCK),
    ]


def test_only_whole_blocks_are_looked_at() -> None:
    """What the disk below could not take as zeroes is passed on as it came."""
    disk = Noting(max_write_zeroes=2 * BLOCK)
    calls = opened(Zeroes(disk))
    for offset, length in ((512, BLOCK), (0, 512), (0, 3 * BLOCK), (0, 0), (0, 2 * BLOCK)):
        calls.write(offset, [memoryview(bytes(length))])
    assert [call[0] for call in disk.calls] == ["write"] * 4 + ["zeroes"]


def test_a_disk_without_write_zeroes_gets_writes() -> None:
    """Nothing is gained by asking it for what it would be written for anyway."""
    for disk in (Plain(), Noting(max_write_zeroes=0)):
        opened(Zeroes(disk)).write(0, [memoryview(bytes(BLOCK))])
        assert disk.calls == [("write", 0, BLOCK)]


def test_zeroes_that_must_be_stable_are_flushed() -> None:
    """A disk that knows no ``fua`` is flushed behind them, as behind a write."""
    disk = Noting()
    opened(Zeroes(disk)).write(0, [memoryview(bytes(BLOCK))], fua=True)
    assert disk.calls == [("zeroes", 0, BLOCK, False), ("flush",)]


def test_unmap_can_be_changed_and_what_was_noticed_is_counted() -> None:
    """The settings tell both."""
    layer = make("zeroes|null:1M")
    assert isinstance(layer, Zeroes)
    calls = opened(layer)
    calls.write(0, [memoryview(bytes(4096))])
    layer.change({"unmap": "on"})
    assert layer.settings() == {"unmap": True, "zero_writes": 1, "zero_bytes": 4096}


_blocks = st.lists(st.sampled_from([bytes(BLOCK), b"x" * BLOCK, b"\0" * 1023 + b"y"]), max_size=4)


@given(st.lists(st.tuples(st.integers(0, SIZE // BLOCK - 4), _blocks), max_size=8))
def test_the_bytes_are_those_of_a_plain_array(writes: list[tuple[int, list[bytes]]]) -> None:
    """Whatever is written, the disk below holds what an array would."""
    disk = Noting()
    calls = opened(Zeroes(disk))
    model = bytearray(disk.data)
    for block, pieces in writes:
        data = b"".join(pieces)
        calls.write(block * BLOCK, [memoryview(piece) for piece in pieces])
        model[block * BLOCK : block * BLOCK + len(data)] = data
    assert disk.data == model
