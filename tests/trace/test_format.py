"""Blocks and records as bytes: docs/reference/trace-format.md says the same."""

import zlib

import pytest

from vhostblk.errors import VhostBlkError
from vhostblk.trace.format import (
    HEAD_SIZE,
    BlockKind,
    Flag,
    Head,
    Header,
    Op,
    Payload,
    block,
    complete,
    data,
    parse_header,
    segment_block,
    submit,
)

HEADER = Header(size=1 << 20, payload=Payload.DIGEST, started=7, clock=5, device="vm0")


def test_a_head_has_48_bytes_and_a_checksum() -> None:
    """Magic, version, kind, length, checksum, segment, first, time; then the head's own sum."""
    raw = block(BlockKind.RECORDS, b"12345678", segment=1, first=2, time=3)
    assert raw[:40] == (
        b"VHBT\x02\x00\x02\x00\x08\x00\x00\x00"
        + zlib.crc32(b"12345678").to_bytes(4, "little")
        + b"".join(number.to_bytes(8, "little") for number in (1, 2, 3))
    )
    assert raw[40:48] == zlib.crc32(raw[:40]).to_bytes(4, "little") + bytes(4)
    assert raw[48:] == b"12345678"
    assert HEAD_SIZE == 48


def test_a_head_reads_back() -> None:
    """What is packed is parsed; each byte of it is under the checksum or zero."""
    head = Head(kind=BlockKind.END, length=16, checksum=9, segment=1 << 63, first=4, time=5)
    raw = head.pack()
    assert Head.parse(raw) == head
    assert Head.parse(raw[:-1]) is None
    for at in range(44):
        assert Head.parse(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]) is None


@pytest.mark.parametrize(("version", "said"), [(1, "an older"), (3, "a newer")])
def test_another_version_is_refused(version: int, said: str) -> None:
    """The error says which program reads it, not that the trace is damaged."""
    raw = bytearray(Head(kind=BlockKind.END, length=0, checksum=0, segment=0).pack())
    raw[4] = version
    raw[40:44] = zlib.crc32(raw[:40]).to_bytes(4, "little")
    with pytest.raises(
        VhostBlkError, match=f"a trace of version {version}, .* reads 2: take {said} one"
    ):
        Head.parse(bytes(raw))


def test_a_segment_says_in_json_what_it_is() -> None:
    """The body is an object, padded to whole words; it reads back."""
    raw = segment_block(HEADER)
    assert len(raw) % 8 == 0
    assert raw[HEAD_SIZE:].startswith(b'{"size":1048576,"block_size":512,"payload":"digest",')
    assert parse_header(raw[HEAD_SIZE:]) == HEADER


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"size":1}',
        b'{"payload":"none","size":-1}',
        b'{"payload":"none","size":true}',
        b'{"payload":"none","size":1e3}',
        b'{"payload":[],"size":1}',
        b"[" * 100_000,
    ],
)
def test_a_segment_that_says_what_cannot_be_is_an_error(body: bytes) -> None:
    """One line, whatever the body is."""
    with pytest.raises(VhostBlkError, match="trace"):
        parse_header(body)


def test_records_as_bytes() -> None:
    """A request of 4 KiB takes 16 bytes where it begins and 8 where it ends."""
    time = 0xAABB_0605_0403_0201
    raw = submit(Op.WRITE, queue=3, sector=2, sectors=8, time=time, flags=Flag.FUA)
    assert raw == bytes.fromhex("12 01 03 0102030405 0200000000 080000")
    raw = complete(7, seq=10, time=time)
    assert raw == bytes.fromhex("01 0300 0102030405")
    raw = complete(7, seq=10, time=time, digest=0xABCD)
    assert raw == bytes.fromhex("41 0300 0102030405 cdab000000000000")
    raw = data(9, b"abc")
    assert raw == bytes.fromhex("05 00 0000 03000000 0900000000000000 6162630000000000")


@pytest.mark.parametrize(
    ("queue", "sector", "sectors"), [(256, 2, 8), (3, 1 << 40, 8), (3, 2, 1 << 24)]
)
def test_what_is_too_large_for_a_short_record_is_in_a_long_one(
    queue: int, sector: int, sectors: int
) -> None:
    """Queues from 256 on, sectors from 2**40 on, 8 GiB and more."""
    raw = submit(Op.READ, queue=queue, sector=sector, sectors=sectors, time=1, flags=0)
    assert raw == (
        b"\x03\x00"
        + queue.to_bytes(2, "little")
        + sectors.to_bytes(4, "little")
        + (1).to_bytes(8, "little")
        + sector.to_bytes(8, "little")
    )


@pytest.mark.parametrize(("submitted", "error"), [(1, 5), (0x1_0000, 0)])
def test_an_end_that_says_more_is_a_long_one(submitted: int, error: int) -> None:
    """An error, or more than 65,535 words back."""
    raw = complete(submitted, seq=submitted + 0xFFFF + (not error), time=2, error=error)
    assert raw == b"".join(number.to_bytes(8, "little") for number in (4, 2, submitted, error))
