from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.guest import Buffer, Framing, GuestError, GuestMemory, Range, Region, Request, Ticket
from vhostblk.guest.blk import UNWRITTEN_DATA, UNWRITTEN_STATUS, BlkTicket, collect, place
from vhostblk.guest.layout import PAGE


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([Region(0, 16 * PAGE), Region(1 << 32, 16 * PAGE)]) as ram:
        yield ram


def test_requests_in_golden_bytes() -> None:
    """
    Type, reserved, sector, then the data the device reads.

    Spec: virtio 1.3, 5.2.6.
    """
    golden = {
        "00000000 00000000 0700000000000000": Request.read(7, 512),
        "01000000 00000000 ffffffffffffffff 616263": Request.write(2**64 - 1, b"abc"),
        "04000000 00000000 0000000000000000": Request.flush(),
        "08000000 00000000 0000000000000000": Request.get_id(),
        "0b000000 00000000 0000000000000000 0100000000000000 02000000 00000000": (
            Request.discard([Range(1, 2)])
        ),
        "0d000000 00000000 0000000000000000"
        "0100000000000000 02000000 01000000 0300000000000000 04000000 00000000": (
            Request.write_zeroes([Range(1, 2, 1), Range(3, 4)])
        ),
        "efbeadde 09000000 0000000000000000": Request(type=0xDEADBEEF, ioprio=9),
    }
    for row, request in golden.items():
        assert request.readable == bytes.fromhex(row)
    assert [r.in_length for r in golden.values()] == [512, 0, 0, 20, 0, 0, 0]


def test_ranges_are_what_they_were_made_of() -> None:
    """For a model that has to follow what is done to a disk."""
    ranges = Range(1, 2, 1), Range(3, 4)
    assert Request.write_zeroes(ranges).ranges == ranges
    assert Request.flush().ranges == ()


def test_request_reads_as_words() -> None:
    """Errors name requests by the standard's name, or by number."""
    assert str(Request.read(8, 512)) == "IN at sector 8 (0 out, 512 in)"
    assert str(Request(type=99)) == "request type 99 at sector 0 (0 out, 0 in)"


@pytest.mark.parametrize(
    ("framing", "readable", "writable"),
    [
        (Framing(), [16, 600], [1]),
        (Framing.compact(), [616], [1]),
        (Framing(readable=(7, 9)), [7, 9, 600], [1]),
        (Framing(readable=(16, 0, 300)), [16, 0, 300, 300], [1]),
        (Framing(readable=(2000,)), [616], [1]),
        (Framing.every(300, Request.write(0, bytes(600))), [300, 300, 16], [1]),
    ],
)
def test_cut_of_a_write(framing: Framing, readable: list[int], writable: list[int]) -> None:
    """Sizes are taken in order; the last descriptor takes what is left."""
    assert framing.cut(Request.write(0, bytes(600))) == (readable, writable)


@pytest.mark.parametrize(
    ("framing", "readable", "writable"),
    [
        (Framing(), [16], [512, 1]),
        (Framing.compact(), [16], [513]),
        (Framing(writable=(1, 511)), [16], [1, 511, 1]),
        (Framing.every(200, Request.read(0, 512)), [16], [200, 200, 113]),
        (Framing.every(1, Request.read(0, 3)), [1] * 16, [1, 1, 1, 1, 509]),
    ],
)
def test_cut_of_a_read(framing: Framing, readable: list[int], writable: list[int]) -> None:
    """Data and status are one string of bytes, cut anywhere."""
    assert framing.cut(Request.read(0, 512)) == (readable, writable)


@given(
    st.lists(st.integers(0, 700), max_size=5),
    st.lists(st.integers(0, 700), max_size=5),
    st.binary(max_size=1000),
    st.integers(0, 1000),
)
def test_place_puts_every_byte_somewhere(
    readable: list[int], writable: list[int], out: bytes, in_length: int
) -> None:
    """Whatever the framing, the pieces together are the request, and collecting frees them."""
    request = Request(type=1, out=out, in_length=in_length)
    with GuestMemory([Region(0, 16 * PAGE)]) as memory:
        buffers, owned = place(memory, request, Framing(readable=readable, writable=writable))
        read = b"".join(memory.read(b.gpa, b.length) for b in buffers if not b.writable)
        written = b"".join(memory.read(b.gpa, b.length) for b in buffers if b.writable)
        assert read == request.readable
        assert written == bytes([UNWRITTEN_DATA]) * in_length + bytes([UNWRITTEN_STATUS])
        done = BlkTicket(Ticket(0, 0, used_length=1), request, buffers, owned)
        assert collect(memory, done).status == UNWRITTEN_STATUS
        assert memory.reserve(4096, 15 * PAGE) == 4096


def test_collect_returns_what_the_device_wrote(memory: GuestMemory) -> None:
    """The last writable byte is the status, the rest is data."""
    request = Request.read(0, 4)
    buffers, owned = place(memory, request, Framing(writable=(2, 3)))
    memory.write(buffers[1].gpa, b"ab")
    memory.write(buffers[2].gpa, b"cd\0")
    done = BlkTicket(Ticket(0, 0, used_length=5), request, buffers, owned)
    completion = collect(memory, done)
    assert (completion.status, completion.data, completion.used_length) == (0, b"abcd", 5)
    assert collect(memory, done) is completion, "its memory is somebody else's by now"


def test_collect_needs_a_done_ticket(memory: GuestMemory) -> None:
    """A request in flight has no result."""
    with pytest.raises(GuestError, match="still in flight"):
        collect(memory, BlkTicket(Ticket(0, 0), Request.flush(), (), []))


def test_pieces_lie_in_different_regions(memory: GuestMemory) -> None:
    """With two regions neighbours in the chain are strangers in memory."""
    buffers, _ = place(memory, Request.read(0, 512), Framing())
    assert [b.gpa >= 1 << 32 for b in buffers] == [False, True, False]
    assert [b.writable for b in buffers] == [False, True, True]


def test_framing_places_pieces(memory: GuestMemory) -> None:
    """Pieces can be misaligned, or put where the caller says."""
    buffers, owned = place(memory, Request.flush(), Framing(align=512, skew=5))
    assert [b.gpa % 512 for b in buffers] == [5, 5]
    assert all(gpa % 512 == 0 for gpa in owned)
    buffers, owned = place(memory, Request.flush(), Framing(at=[0x8000, 0x9000]))
    assert buffers == (Buffer(0x8000, 16), Buffer(0x9000, 1, writable=True))
    assert owned == []
    with pytest.raises(GuestError, match="2 descriptors, but 1 addresses"):
        place(memory, Request.flush(), Framing(at=[0x8000]))


def test_place_without_room_takes_nothing(memory: GuestMemory) -> None:
    """A request that does not fit leaves no piece behind."""
    with pytest.raises(GuestError, match="in one piece"):
        place(memory, Request.read(0, 17 * PAGE), Framing())
    assert memory.reserve(1 << 32, 16 * PAGE) == 1 << 32
