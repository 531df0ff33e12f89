import struct

import pytest
from frontend_bytes import REGION, SAMPLES, Sample, some_fds

from vhostblk.protocol.describe import describe
from vhostblk.protocol.fd import Fd
from vhostblk.protocol.messages import Invalid, SetVringEnable, close_fds
from vhostblk.protocol.parse import PARSERS, Body
from vhostblk.spec.vhost_user import Request


def text_of(number: int, payload: bytes, fds: int = 0) -> str:
    owned = tuple(Fd(number) for number in some_fds(fds))
    message = PARSERS[Request(number)](Body(payload, owned, need_reply=True))
    text = describe(message)
    close_fds(message)
    return text


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: Request(sample.number).name)
def test_describe_is_one_line_with_the_standard_name(sample: Sample) -> None:
    """Every message has a line; it begins with the name and ends with what it waits for."""
    text = text_of(sample.number, sample.payload, sample.fds)
    assert text.startswith(Request(sample.number).name)
    assert text.endswith(" need_reply")
    assert "\n" not in text


def test_describe_shows_the_fields() -> None:
    """Addresses in hex, counts in decimal, flags by name."""
    assert describe(SetVringEnable(index=1, enable=True)) == "SET_VRING_ENABLE index=1 enable=1"
    addr = struct.pack("=IIQQQQ", 1, 1, 0xD000, 0xE000, 0xA000, 0)
    assert text_of(9, addr) == (
        "SET_VRING_ADDR index=1 flags=0x1(LOG) desc=0xd000 used=0xe000 avail=0xa000 log=0x0"
        " need_reply"
    )
    assert text_of(38, bytes(8) + REGION) == (
        "REM_MEM_REG region=[gpa=0x100000 size=2097152 uva=0x7f0000000000 mmap_offset=0x3000"
        " fd=None] need_reply"
    )
    assert text_of(16, struct.pack("=Q", 0x208)).startswith(
        "SET_PROTOCOL_FEATURES features=0x208(REPLY_ACK|CONFIG)"
    )


def test_describe_says_why_a_message_is_invalid() -> None:
    """By name where it has one, by number where not."""
    bad = Invalid(number=18, errno=22, reason="neither", need_reply=False)
    assert describe(bad) == "SET_VRING_ENABLE invalid: neither"
    assert describe(Invalid(number=99, errno=95, reason="unknown")) == (
        "message 99 invalid: unknown need_reply"
    )
