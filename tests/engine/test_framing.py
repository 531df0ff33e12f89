"""How a request may be cut into descriptors, and how not, whichever engine serves it."""

import struct
from collections.abc import Callable
from itertools import pairwise

import pytest
from engine.driver import GPA, MEMORY, PENDING, WRITE, Asked, Lane, pattern
from engine.harness import Rig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhostblk.spec.virtio_blk import RequestType, Status

IN, OUT = RequestType.IN, RequestType.OUT
OUTSIDE = GPA + MEMORY + 0x1000


def pieces(lane: Lane, content: bytes, cuts: list[int], flags: int) -> list[tuple[int, int, int]]:
    """Put bytes into descriptors of their own, cut at *cuts*."""
    edges = sorted({0, len(content), *(cut % len(content) for cut in cuts)})
    parts = []
    for first, last in pairwise(edges):
        address = lane.memory.alloc(last - first, align=1)
        lane.memory.write(address, content[first:last])
        parts.append((address, last - first, flags))
    return parts


def offer(lane: Lane, *parts: tuple[int, int, int]) -> Asked:
    """Make any chain available; its status is the last byte of its last writable part."""
    head = lane.chain(*parts)
    lane.offer(head)
    address, length, _ = [part for part in parts if part[2] & WRITE and part[1]][-1]
    return Asked(lane, head, address + length - 1)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    header_cuts=st.lists(st.integers(0, 15), max_size=5),
    out_cuts=st.lists(st.integers(0, 1023), max_size=6),
    in_cuts=st.lists(st.integers(0, 1024), max_size=6),
    indirect=st.booleans(),
    split=st.booleans(),
)
def test_any_framing_is_the_same_request(  # noqa: PLR0913 - three parts, cut and packed
    rig: Rig,
    *,
    header_cuts: list[int],
    out_cuts: list[int],
    in_cuts: list[int],
    indirect: bool,
    split: bool,
) -> None:
    """
    Header, data and status may be cut, and joined, in any way.

    Spec: virtio 1.3, 2.7.4.1.
    """
    rig.memory.reset()
    lane = rig.lanes[0] if rig.lanes else rig.lane(size=64)
    content = pattern(1024)
    header = struct.pack("<IIQ", OUT, 0, 5)
    if split:
        out = pieces(lane, header, header_cuts, 0) + pieces(lane, content, out_cuts, 0)
    else:
        out = pieces(lane, header + content, header_cuts + out_cuts, 0)
    writes = [*out, *pieces(lane, bytes([PENDING]), [], WRITE)]
    header = struct.pack("<IIQ", IN, 0, 5)
    landing = pieces(lane, bytes([PENDING]) * 1025, in_cuts, WRITE)
    reads = [*pieces(lane, header, header_cuts, 0), *landing]
    for parts in (writes, reads):
        head = lane.chain(lane.table(*parts)) if indirect else lane.chain(*parts)
        lane.offer(head)
        rig.pump()
    got = b"".join(lane.memory.read(address, length) for address, length, _ in landing)
    assert got == content + b"\0"
    assert rig.disk[2560:3584] == content


BAD: dict[str, Callable[[Lane], list[tuple[int, int, int]]]] = {
    "short header": lambda lane: [lane.data(bytes(15)), lane.status()],
    "status first": lambda lane: [lane.status(), lane.header(IN)],
    "readable after writable": lambda lane: [
        lane.header(IN),
        lane.data(bytes(512), WRITE),
        lane.data(bytes(512)),
        lane.status(),
    ],
    "empty descriptor": lambda lane: [lane.header(IN), (GPA, 0, 0), lane.status()],
    "empty writable": lambda lane: [lane.header(IN), lane.status(), (GPA, 0, WRITE)],
    "data not mapped": lambda lane: [lane.header(IN), (OUTSIDE, 512, WRITE), lane.status()],
    "data half mapped": lambda lane: [
        lane.header(IN),
        (GPA + MEMORY - 256, 512, WRITE),
        lane.status(),
    ],
    "data that wraps": lambda lane: [
        lane.header(IN),
        ((1 << 64) - 256, 512, WRITE),
        lane.status(),
    ],
    "header not mapped": lambda lane: [(OUTSIDE, 16, 0), lane.status()],
    "four gigabytes": lambda lane: [lane.header(OUT), (GPA, 0xFFFFFFFF, 0), lane.status()],
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_chain_that_is_no_request_is_an_io_error(rig: Rig, lane: Lane, name: str) -> None:
    """
    The request fails, its status is found all the same, the queue goes on.

    Spec: virtio 1.3, 2.7.4.2.
    """
    asked = offer(lane, *BAD[name](lane))
    rig.pump()
    assert (asked.status, asked.used) == (Status.IOERR, 1)
    assert rig.jobs == []
    assert lane.queue.fault() is None
    assert lane.queue.counters().errors == 1


def test_memory_that_may_only_be_read_is_not_written(rig: Rig) -> None:
    """Rights are the segment's: data into a read-only one is an I/O error."""
    lane = rig.lane(run=False)
    guarded = GPA + MEMORY - 4096
    lane.queue.set_space(
        [rig.memory.segment(length=MEMORY - 4096), rig.memory.segment(guarded, 4096, 1)]
    )
    rig.call(lane.queue.run)
    bad = offer(lane, lane.header(IN), (guarded, 512, WRITE), lane.status())
    good = offer(lane, lane.header(OUT), (guarded, 512, 0), lane.status())
    rig.pump()
    assert (bad.status, good.status) == (Status.IOERR, Status.OK)


def test_data_may_cross_regions(rig: Rig) -> None:
    """Neighbours in the guest need not be neighbours here: the data is in several pieces."""
    lane = rig.lane(run=False)
    cut = GPA + (MEMORY // 2) + 0x8000
    lane.queue.set_space([rig.memory.segment(length=cut - GPA), rig.memory.segment(cut, 65536)])
    rig.call(lane.queue.run)
    rig.disk[:1024] = pattern(1024)
    offer(lane, lane.header(IN), (cut - 512, 1024, WRITE), lane.status())
    rig.step()
    (job,) = rig.take(lane)
    assert [len(view) for view in job.views] == [512, 512]
    rig.finish(lane, job)
    rig.step()
    assert lane.memory.read(cut - 512, 1024) == rig.disk[:1024]


def test_a_chain_without_room_for_a_status_is_given_back(rig: Rig, lane: Lane) -> None:
    """
    Its head must not be lost, or a guest could starve its own queue; it is counted.

    ARCHITECTURE, "What a bad guest gets".
    """
    head = lane.chain(lane.header(IN))
    lane.offer(head)
    rig.pump()
    assert lane.used() == [(head, 0)]
    assert lane.queue.counters().malformed == 1
    assert lane.queue.fault() is None


def test_too_many_pieces_are_an_io_error(rig: Rig) -> None:
    """2000 runs of memory are served; 2100 are nobody's request, but get their status."""
    lane = rig.lane()
    byte = lane.memory.alloc(512)
    for n, expected in ((2000, Status.OK), (2100, Status.IOERR)):
        parts = [(byte + i % 512, 1, 0) for i in range(n - n % 512)]
        parts += [(byte, 512, 0)] * (n % 512)
        asked_status = lane.status()
        head = lane.chain(lane.table(lane.header(OUT), *parts, asked_status))
        lane.offer(head)
        rig.pump()
        assert lane.memory.read(asked_status[0], 1)[0] == expected
