import itertools
import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.blk.config import SIZE_MAX
from vhostblk.blk.device import MAX_RANGES, MAX_TRANSFER, BlkDevice
from vhostblk.blk.request import (
    IOERR,
    UNSUPP,
    Answer,
    Buffer,
    Operation,
    Payload,
    Rules,
    frame,
    parse,
    parse_ranges,
)
from vhostblk.spec.virtio_blk import RequestType, Status

SECTORS = 2048
DEVICE = BlkDevice(
    capacity_sectors=SECTORS,
    discard=True,
    max_discard=1 << 19,
    write_zeroes=True,
    may_unmap=True,
    max_write_zeroes=1 << 18,
    serial=b"disk-7",
)
RULES = Rules(DEVICE, writethrough=False)
DONE = Answer(Status.OK)
DISCARD = RequestType.DISCARD
ZEROES = RequestType.WRITE_ZEROES


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def ranges(*parts: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QII", *part) for part in parts)


def cut(address: int, length: int, cuts: Sequence[int], *, writable: bool) -> list[Buffer]:
    """Cut a run of bytes into adjacent descriptors."""
    edges = sorted({0, length, *(cut % length for cut in cuts)})
    return [
        Buffer(address + first, last - first, writable) for first, last in itertools.pairwise(edges)
    ]


def octets(parts: Sequence[Buffer]) -> list[int]:
    """Return the address of every byte."""
    return [part.address + i for part in parts for i in range(part.length)]


@given(
    readable=st.integers(16, 80),
    writable=st.integers(1, 40),
    out_cuts=st.lists(st.integers(0, 200), max_size=12),
    in_cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_frame_finds_the_same_parts_in_any_cut(
    readable: int, writable: int, out_cuts: list[int], in_cuts: list[int]
) -> None:
    """
    However the driver cuts a request, header, data and status are the same bytes.

    Spec: virtio 1.3, 2.7.4.1.
    """
    chain = [
        *cut(1000, readable, out_cuts, writable=False),
        *cut(5000, writable, in_cuts, writable=True),
    ]
    found = frame(chain)
    assert found.valid
    assert octets(found.header) == list(range(1000, 1016))
    assert octets(found.readable) == list(range(1016, 1000 + readable))
    assert octets(found.writable) == list(range(5000, 5000 + writable - 1))
    assert found.status == 5000 + writable - 1


@given(
    st.lists(
        st.builds(Buffer, st.integers(0, 1 << 63), st.integers(0, 64), st.booleans()),
        max_size=8,
    )
)
def test_frame_keeps_every_byte_of_any_chain(chain: list[Buffer]) -> None:
    """Whatever the chain, no byte is lost or invented, and a status is a writable byte."""
    found = frame(chain)
    tail = [] if found.status is None else [found.status]
    assert octets([*found.header, *found.readable]) == octets([b for b in chain if not b.writable])
    assert octets(found.writable) + tail == octets([b for b in chain if b.writable])


@pytest.mark.parametrize(
    "chain",
    [
        [Buffer(0, 15, writable=False), Buffer(100, 1, writable=True)],
        [Buffer(100, 1, writable=True), Buffer(0, 16, writable=False)],
        [
            Buffer(0, 16, writable=False),
            Buffer(99, 1, writable=True),
            Buffer(40, 8, writable=False),
            Buffer(100, 1, writable=True),
        ],
        [
            Buffer(0, 16, writable=False),
            Buffer(50, 0, writable=False),
            Buffer(100, 1, writable=True),
        ],
        [Buffer(0, 16, writable=False), Buffer(100, 1, writable=True), Buffer(7, 0, writable=True)],
    ],
    ids=["short header", "status first", "mixed", "empty readable", "empty writable"],
)
def test_frame_refuses_what_is_no_request_and_still_finds_the_status(chain: list[Buffer]) -> None:
    """
    A chain that is no request gets an error into its last writable byte.

    Spec: virtio 1.3, 2.7.4.2.
    """
    found = frame(chain)
    assert not found.valid
    assert found.status == 100


def test_frame_wraps_the_address_of_the_status() -> None:
    """Addresses are 64 bits wide: the byte behind the last one is the first."""
    chain = [Buffer(0, 16, writable=False), Buffer((1 << 64) - 4, 8, writable=True)]
    assert frame(chain).status == 3


def test_frame_without_a_writable_byte_has_no_status() -> None:
    """There is no room for an answer."""
    assert frame([Buffer(0, 16, writable=False), Buffer(5, 0, writable=True)]).status is None


def test_parse_reads_and_writes() -> None:
    """IN takes its length from the writable part, OUT from the readable one."""
    got = parse(header(RequestType.IN, 8), readable=0, writable=4096, rules=RULES)
    assert got == Operation(RequestType.IN, 4096, 4096)
    got = parse(header(RequestType.OUT, 8), readable=512, writable=0, rules=RULES)
    assert got == Operation(RequestType.OUT, 4096, 512)


@pytest.mark.parametrize("kind", [RequestType.IN, RequestType.OUT])
@pytest.mark.parametrize(
    ("sector", "length", "expected"),
    [
        (SECTORS - 1, 512, True),
        (SECTORS, 512, False),
        (SECTORS - 1, 1024, False),
        (1 << 63, 512, False),
        ((1 << 64) - 1, 512, False),
        ((1 << 55), 512, False),
        (0, 511, False),
        (0, 513, False),
        (0, SECTORS * 512, True),
    ],
)
def test_parse_checks_range_and_length(
    kind: RequestType, sector: int, length: int, *, expected: bool
) -> None:
    """A transfer outside the disk, also by 64-bit overflow, or of half sectors is an error."""
    got = parse(header(kind, sector), readable=length, writable=length, rules=RULES)
    assert got == (Operation(kind, sector * 512, length) if expected else IOERR)


def test_parse_bounds_a_transfer() -> None:
    """All segments at their longest fit into the bound; a driver that goes on and on does not."""
    rules = Rules(replace(DEVICE, capacity_sectors=1 << 40), writethrough=False)
    longest = DEVICE.seg_max * SIZE_MAX
    got = parse(header(RequestType.IN), readable=0, writable=longest, rules=rules)
    assert got == Operation(RequestType.IN, 0, longest)
    too_long = MAX_TRANSFER + 512
    assert parse(header(RequestType.IN), readable=0, writable=too_long, rules=rules) == IOERR


@pytest.mark.parametrize(("sector", "length"), [(0, 512), (1, 4096), (8, 6144)])
def test_parse_wants_whole_blocks(sector: int, length: int) -> None:
    """On a disk of 4096-byte blocks both ends of a transfer lie on block borders."""
    rules = Rules(replace(DEVICE, block_size=4096), writethrough=False)
    assert parse(header(RequestType.IN, sector), readable=0, writable=length, rules=rules) == IOERR


@pytest.mark.parametrize("kind", [RequestType.IN, RequestType.OUT])
def test_parse_does_nothing_for_no_data(kind: RequestType) -> None:
    """A transfer of nothing succeeds without the disk."""
    assert parse(header(kind), readable=0, writable=0, rules=RULES) == DONE


@pytest.mark.parametrize("kind", [RequestType.IN, RequestType.OUT])
def test_parse_checks_where_nothing_is_asked_for(kind: RequestType) -> None:
    """A transfer of nothing behind the end is as wrong as one of something."""
    assert parse(header(kind, SECTORS + 1), readable=0, writable=0, rules=RULES) == IOERR


@pytest.mark.parametrize("sector", [0, 1, (1 << 64) - 1])
def test_parse_tolerates_a_sector_in_a_flush(sector: int) -> None:
    """The standard wants 0 there; nothing depends on it."""
    got = parse(header(RequestType.FLUSH, sector), readable=0, writable=0, rules=RULES)
    assert got == Operation(RequestType.FLUSH)


@pytest.mark.parametrize("room", [0, 5, 20, 100])
def test_parse_gives_the_serial_as_far_as_there_is_room(room: int) -> None:
    """
    GET_ID gives up to 20 bytes, padded with NUL; also on a read-only disk.

    Spec: virtio 1.3, 5.2.6.
    """
    rules = Rules(replace(DEVICE, read_only=True), writethrough=False)
    got = parse(header(RequestType.GET_ID), readable=0, writable=room, rules=rules)
    assert got == Answer(Status.OK, (b"disk-7" + bytes(14))[:room], get_id=True)


def test_parse_masks_the_legacy_barrier() -> None:
    """Bit 31 of the type means nothing."""
    got = parse(header(RequestType.OUT | 1 << 31), readable=512, writable=0, rules=RULES)
    assert got == Operation(RequestType.OUT, 0, 512)


@pytest.mark.parametrize("kind", [2, 3, 5, 10, 12, 14, 15, 99, 0x7FFFFFFF])
def test_parse_does_not_support_other_types(kind: int) -> None:
    """Unknown types, and known ones that are not offered, are unsupported."""
    assert parse(header(kind), readable=16, writable=16, rules=RULES) == UNSUPP


@pytest.mark.parametrize("kind", [DISCARD, ZEROES])
def test_parse_does_not_support_what_is_not_offered(kind: RequestType) -> None:
    """DISCARD and WRITE_ZEROES are answered like unknown types where the disk cannot."""
    rules = Rules(BlkDevice(capacity_sectors=SECTORS), writethrough=False)
    assert parse(header(kind), readable=16, writable=0, rules=rules) == UNSUPP


@pytest.mark.parametrize("kind", [RequestType.OUT, DISCARD, ZEROES])
def test_parse_lets_nothing_change_a_read_only_disk(kind: RequestType) -> None:
    """Every kind of write is an I/O error there."""
    rules = Rules(replace(DEVICE, read_only=True), writethrough=False)
    assert parse(header(kind), readable=512, writable=0, rules=rules) == IOERR


@pytest.mark.parametrize("kind", [DISCARD, ZEROES])
@pytest.mark.parametrize(
    ("length", "good"),
    [
        (0, False),
        (15, False),
        (16, True),
        (17, False),
        (16 * MAX_RANGES, True),
        (16 * (MAX_RANGES + 1), False),
    ],
)
def test_parse_wants_whole_ranges(kind: RequestType, length: int, *, good: bool) -> None:
    """The payload is 1 to MAX_RANGES ranges of 16 bytes."""
    got = parse(header(kind), readable=length, writable=0, rules=RULES)
    assert got == (Payload(kind, length) if good else IOERR)


def test_parse_ranges_gives_one_operation_each() -> None:
    """Several ranges are several operations, in order; empty ones are left out."""
    payload = ranges((8, 8, 0), (100, 0, 0), (64, 16, 0))
    assert parse_ranges(DISCARD, payload, rules=RULES) == (
        Operation(DISCARD, 4096, 4096),
        Operation(DISCARD, 32768, 8192),
    )


def test_parse_ranges_of_nothing_succeed() -> None:
    """Ranges of no sectors need no disk."""
    assert parse_ranges(ZEROES, ranges((5, 0, 1), (SECTORS, 0, 0)), rules=RULES) == DONE


@pytest.mark.parametrize(
    ("kind", "part", "expected"),
    [
        (DISCARD, (0, 8, 1), UNSUPP),
        (DISCARD, (0, 8, 2), UNSUPP),
        (ZEROES, (0, 8, 2), UNSUPP),
        (ZEROES, (0, 8, 0x80000001), UNSUPP),
        (DISCARD, (0, 1025, 0), IOERR),
        (ZEROES, (0, 513, 0), IOERR),
        (DISCARD, (SECTORS - 8, 9, 0), IOERR),
        (ZEROES, ((1 << 64) - 8, 8, 0), IOERR),
        (ZEROES, (1 << 55, 8, 0), IOERR),
        (DISCARD, (0, 0xFFFFFFFF, 0), IOERR),
        (ZEROES, (SECTORS + 1, 0, 0), IOERR),
    ],
)
def test_parse_ranges_checks_all_before_any(
    kind: RequestType, part: tuple[int, int, int], expected: Answer
) -> None:
    """One bad range, also the last, and nothing at all is done."""
    assert parse_ranges(kind, ranges((16, 8, 0), part), rules=RULES) == expected
    assert parse_ranges(kind, ranges(part, (16, 8, 0)), rules=RULES) == expected


def test_parse_ranges_takes_the_longest_allowed() -> None:
    """The advertised maximum itself is allowed."""
    assert parse_ranges(DISCARD, ranges((0, 1024, 0)), rules=RULES) == (
        Operation(DISCARD, 0, 1 << 19),
    )


@pytest.mark.parametrize("part", [(1, 8, 0), (8, 9, 0)])
def test_parse_ranges_wants_whole_blocks(part: tuple[int, int, int]) -> None:
    """Ranges obey the block size as transfers do."""
    rules = Rules(replace(DEVICE, block_size=4096), writethrough=False)
    assert parse_ranges(DISCARD, ranges(part), rules=rules) == IOERR


@pytest.mark.parametrize("may", [True, False])
def test_parse_ranges_passes_unmap_where_the_disk_wants_it(*, may: bool) -> None:
    """UNMAP is a hint: ignored, not refused, where the disk makes no holes."""
    rules = Rules(replace(DEVICE, may_unmap=may), writethrough=False)
    assert parse_ranges(ZEROES, ranges((0, 8, 1)), rules=rules) == (
        Operation(ZEROES, 0, 4096, unmap=may),
    )


def test_writethrough_makes_every_change_stable() -> None:
    """
    OUT, DISCARD and WRITE_ZEROES carry FUA, and nothing else does.

    Spec: virtio 1.3, 5.2.6.2.
    """
    rules = Rules(DEVICE, writethrough=True)
    out = parse(header(RequestType.OUT), readable=512, writable=0, rules=rules)
    assert out == Operation(RequestType.OUT, 0, 512, fua=True)
    read = parse(header(RequestType.IN), readable=0, writable=512, rules=rules)
    assert read == Operation(RequestType.IN, 0, 512)
    for kind in (DISCARD, ZEROES):
        got = parse_ranges(kind, ranges((0, 8, 0)), rules=rules)
        assert got == (Operation(kind, 0, 4096, fua=True),)
