import ctypes

import pytest

from vhostblk.blk.request import Buffer
from vhostblk.engine.reference.memory import (
    GuestMemory,
    Part,
    copy_in,
    copy_out,
    load16,
    store16,
    view,
)
from vhostblk.memory.space import Access, Denied, Segment


@pytest.fixture
def block() -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(bytes(range(64)), 64)


def test_view_is_the_memory_itself(block: ctypes.Array[ctypes.c_char]) -> None:
    """What is written through a view is there, without a copy."""
    made, _ = view(ctypes.addressof(block) + 8, 4, writable=True)
    made[:] = b"abcd"
    assert block.raw[7:13] == b"\7abcd\14"
    made.release()


def test_view_for_reading_cannot_be_written(block: ctypes.Array[ctypes.c_char]) -> None:
    """A disk that is given data to store cannot change it."""
    made, _ = view(ctypes.addressof(block), 4, writable=False)
    with pytest.raises(TypeError):
        made[0] = 1
    made.release()


@pytest.mark.parametrize("writable", [True, False])
def test_view_tells_when_a_slice_of_it_lives_on(
    block: ctypes.Array[ctypes.c_char], *, writable: bool
) -> None:
    """Releasing a view does not end its slices; the exporter lives until the last is gone."""
    made, exporter = view(ctypes.addressof(block), 16, writable=writable)
    part = made[4:8]
    made.release()
    assert exporter() is not None
    part.release()
    assert exporter() is None


def test_fields_are_little_endian_words(block: ctypes.Array[ctypes.c_char]) -> None:
    """16-bit fields are stored whole, and cut to 16 bits."""
    host = ctypes.addressof(block)
    store16(host + 2, 0x1FFFE)
    assert block.raw[:5] == b"\0\1\xfe\xff\4"
    assert load16(host + 2) == 0xFFFE


def test_locate_crosses_segments(block: ctypes.Array[ctypes.c_char]) -> None:
    """A range over two segments is two buffers, wherever they live."""
    host = ctypes.addressof(block)
    memory = GuestMemory(
        [
            Segment(100, 10, host + 32, Access.READ),
            Segment(110, 10, host, Access.READ | Access.WRITE),
        ]
    )
    assert memory.locate(Buffer(105, 10, writable=False)) == [
        Buffer(host + 37, 5, writable=False),
        Buffer(host, 5, writable=False),
    ]
    parts = memory.locate(Buffer(108, 4, writable=False))
    read = b"".join(copy_in(part.address, part.length) for part in parts)
    assert read == bytes([40, 41, 0, 1])
    assert memory.locate(Buffer(0, 0, writable=True)) == []


@pytest.mark.parametrize(
    "part",
    [
        Buffer(105, 10, writable=True),
        Buffer(99, 2, writable=False),
        Buffer(119, 2, writable=False),
        Buffer((1 << 64) - 1, 2, writable=False),
    ],
)
def test_locate_denies(block: ctypes.Array[ctypes.c_char], part: Buffer) -> None:
    """One byte that is not mapped, or not for this direction, denies the range."""
    host = ctypes.addressof(block)
    memory = GuestMemory(
        [
            Segment(100, 10, host, Access.READ),
            Segment(110, 10, host, Access.READ | Access.WRITE),
        ]
    )
    with pytest.raises(Denied):
        memory.locate(part)


def test_part_finds_bytes_in_its_pieces(block: ctypes.Array[ctypes.c_char]) -> None:
    """Offsets run on over pieces, and end behind the last."""
    host = ctypes.addressof(block)
    part = Part([(host + 40, 8), (host, 8)])
    assert part.length == 16
    assert [part.at(offset) - host for offset in (0, 7, 8, 15)] == [40, 47, 0, 7]
    with pytest.raises(IndexError):
        part.at(16)
    copy_out(part.at(8), b"zz")
    assert block.raw[:3] == b"zz\2"
