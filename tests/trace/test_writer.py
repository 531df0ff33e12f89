"""A trace made in Python is one that is read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.trace.format import Header, Op, Payload
from vhostblk.trace.reader import read
from vhostblk.trace.writer import Writer

REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(Op),
        st.integers(0, 1 << 40),
        st.integers(0, 3),
        st.integers(0, 0xFFFF),
        st.booleans(),
    ),
    max_size=30,
)


@settings(max_examples=25)
@given(requests=REQUESTS, block_size=st.integers(1, 4096))
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    requests: list[tuple[Op, int, int, int, bool]],
    block_size: int,
) -> None:
    """Requests of every kind, in blocks of any size, with their payloads."""
    path = tmp_path_factory.getbasetemp() / "written"
    header = Header(size=1 << 50, payload=Payload.FULL, started=3, clock=4)
    with path.open("wb") as file, Writer(file, header, block_size=block_size) as trace:
        for op, sector, sectors, queue, fua in requests:
            payload = bytes([queue & 0xFF]) * (512 * sectors) if op is Op.WRITE else None
            seq = trace.submit(
                op,
                offset=sector * 512,
                length=sectors * 512,
                queue=queue,
                fua=fua,
                payload=payload,
                time=sector,
            )
            if not fua:
                trace.complete(seq, time=sector + 1, error=queue)
    got = list(read(path).segments[0].requests())
    ended = sorted(got, key=lambda one: one.submitted.seq)
    assert [
        (
            one.submitted.op,
            one.submitted.offset // 512,
            one.submitted.length // 512,
            one.submitted.queue,
            one.submitted.fua,
        )
        for one in ended
    ] == requests
    for one in ended:
        if one.submitted.op is Op.WRITE and one.submitted.length:
            assert one.submitted.payload == bytes([one.submitted.queue & 0xFF]) * (
                one.submitted.length
            )
        assert (one.completed is None) == one.submitted.fua
        if one.completed is not None:
            assert one.completed.error == one.submitted.queue
            assert one.latency == 1
