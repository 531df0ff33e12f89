"""From the words of a block to what happened."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.errors import VhostBlkError
from vhostblk.trace.format import Flag, Op, complete, data, submit
from vhostblk.trace.records import Completed, Data, Submitted, parse


def test_a_request_reads_back() -> None:
    """Sequence numbers are places in words; times count from when the segment began."""
    body = submit(Op.WRITE_ZEROES, queue=2, sector=8, sectors=16, time=105, flags=Flag.UNMAP)
    body += complete(back=3, error=28, time=107)
    assert list(parse(body, first=10, clock=100)) == [
        Submitted(
            seq=10, time=5, queue=2, op=Op.WRITE_ZEROES, offset=4096, length=8192, unmap=True
        ),
        Completed(seq=13, time=7, submit=10, error=28),
    ]


def test_digests_and_data_read_back() -> None:
    """A digest is the last word of its record; data is without what fills its last word."""
    body = submit(
        Op.WRITE, queue=0, sector=0, sectors=1, time=0, flags=Flag.DIGEST | Flag.FUA, digest=77
    )
    body += data(0, b"abcde") + complete(back=7, error=0, time=0, digest=78)
    first, second, third = parse(body, first=0, clock=0)
    assert isinstance(first, Submitted)
    assert (first.digest, first.fua) == (77, True)
    assert second == Data(seq=4, submit=0, data=b"abcde")
    assert third == Completed(seq=7, time=0, submit=0, error=0, digest=78)


def test_a_request_far_back_is_named_by_its_number() -> None:
    """Where 32 bits of words do not reach back, the record has a word for it."""
    body = struct.pack("<BBHIQQ", 3, 0, 0, 0, 9, 1)
    assert list(parse(body, first=1 << 40, clock=0)) == [
        Completed(seq=1 << 40, time=9, submit=1, error=0)
    ]


@settings(max_examples=50)
@given(st.binary(max_size=200).map(lambda raw: raw + bytes(-len(raw) % 8)))
def test_whatever_the_words_are_it_is_records_or_one_line(body: bytes) -> None:
    """No block makes the reader fail otherwise, or read beyond it."""
    try:
        records = list(parse(body, first=0, clock=0))
    except VhostBlkError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may do either
    else:
        assert all(record.seq * 8 < len(body) for record in records)
