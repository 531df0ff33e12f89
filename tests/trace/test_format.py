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
        b"VHBT\x01\x00\x02\x00\x08\x00\x00\x00"
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


def test_a_later_version_is_refused() -> None:
    """The error says that the program is too old, not that the trace is damaged."""
    raw = bytearray(Head(kind=BlockKind.END, length=0, checksum=0, segment=0).pack())
    raw[4] = 2
    raw[40:44] = zlib.crc32(raw[:40]).to_bytes(4, "little")
    with pytest.raises(VhostBlkError, match="a trace of version 2, and this program reads 1"):
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
    """A request of 4 KiB takes 24 bytes where it begins and 16 where it ends."""
    raw = submit(Op.WRITE, queue=3, sector=2, sectors=8, time=1, flags=Flag.FUA)
    assert raw == bytes.fromhex("01 11 0300 08000000 0100000000000000 0200000000000000")
    raw = complete(back=3, error=5, time=2)
    assert raw == bytes.fromhex("02 00 0500 03000000 0200000000000000")
    raw = complete(back=3, error=0, time=2, digest=0xABCD)
    assert raw == bytes.fromhex("02 40 0000 03000000 0200000000000000 cdab000000000000")
    raw = data(9, b"abc")
    assert raw == bytes.fromhex("04 00 0000 03000000 0900000000000000 6162630000000000")
