"""From the words of a block to what happened."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.errors import VhostBlkError
from vhostblk.trace.format import Flag, Op, complete, data, submit
from vhostblk.trace.records import Completed, Data, Submitted, parse


def test_a_request_reads_back() -> None:
    """Sequence numbers are places in words; times count from when the segment began."""
    body = submit(Op.WRITE_ZEROES, queue=2, sector=8, sectors=16, time=105, flags=Flag.UNMAP)
    body += complete(10, seq=12, time=107) + complete(10, seq=13, error=28, time=108)
    assert list(parse(body, first=10, clock=100, written=109)) == [
        Submitted(
            seq=10, time=5, queue=2, op=Op.WRITE_ZEROES, offset=4096, length=8192, unmap=True
        ),
        Completed(seq=12, time=7, submit=10, error=0),
        Completed(seq=13, time=8, submit=10, error=28),
    ]


@pytest.mark.parametrize(
    ("queue", "sector", "sectors"),
    [(0, 0, 0), (0xFF, (1 << 40) - 1, (1 << 24) - 1), (0xFFFF, (1 << 55) - 1, (1 << 32) - 1)],
)
def test_the_largest_and_the_smallest_read_back(queue: int, sector: int, sectors: int) -> None:
    """Those of a short record, and of a long one."""
    body = submit(Op.DISCARD, queue=queue, sector=sector, sectors=sectors, time=9)
    assert list(parse(body, first=0, clock=0, written=9)) == [
        Submitted(
            seq=0, time=9, queue=queue, op=Op.DISCARD, offset=sector * 512, length=sectors * 512
        )
    ]


def test_digests_and_data_read_back() -> None:
    """A digest is the last word of its record; data is without what fills its last word."""
    body = submit(
        Op.WRITE, queue=0, sector=0, sectors=1, time=0, flags=Flag.DIGEST | Flag.FUA, digest=77
    )
    body += data(0, b"abcde") + complete(0, seq=6, time=0, digest=78)
    first, second, third = parse(body, first=0, clock=0, written=0)
    assert isinstance(first, Submitted)
    assert (first.digest, first.fua) == (77, True)
    assert second == Data(seq=3, submit=0, data=b"abcde")
    assert third == Completed(seq=6, time=0, submit=0, error=0, digest=78)


def test_a_request_far_back_is_named_by_its_number() -> None:
    """Where 16 bits of words do not reach back, the record has a word for it."""
    body = complete(1, seq=1 << 40, time=9)
    assert list(parse(body, first=1 << 40, clock=0, written=9)) == [
        Completed(seq=1 << 40, time=9, submit=1, error=0)
    ]


@pytest.mark.parametrize("later", [1 - (1 << 39), -5, 0, 5, (1 << 39) - 1])
@pytest.mark.parametrize("written", [1 << 39, (1 << 40) - 2, 1 << 40, (3 << 40) + 2])
def test_a_short_time_is_the_one_near_the_block(written: int, later: int) -> None:
    """It has 40 bits: those of the block's time above them may be one more, or one less."""
    (record,) = parse(complete(0, seq=0, time=written + later), first=0, clock=3, written=written)
    assert isinstance(record, Completed)
    assert record.time == written + later - 3


@settings(max_examples=50)
@given(st.binary(max_size=200).map(lambda raw: raw + bytes(-len(raw) % 8)))
def test_whatever_the_words_are_it_is_records_or_one_line(body: bytes) -> None:
    """No block makes the reader fail otherwise, or read beyond it."""
    try:
        records = list(parse(body, first=0, clock=0, written=0))
    except VhostBlkError as error:
        assert "\n" not in str(error)  # noqa: PT017 - it may do either
    else:
        assert all(record.seq * 8 < len(body) for record in records)
