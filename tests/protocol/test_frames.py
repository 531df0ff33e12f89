import os

import pytest
from frontend_bytes import message, some_fds
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.errors import ProtocolError
from vhostblk.protocol.frames import Frame, Framer, encode
from vhostblk.spec.vhost_user import FLAG_REPLY, MAX_PAYLOAD


def cut(framer: Framer, data: bytes, step: int) -> list[Frame]:
    """Feed *data* in reads of at most *step* bytes, none larger than wanted."""
    frames = []
    while data:
        size = min(step, framer.want)
        frame = framer.feed(data[:size])
        data = data[size:]
        if frame is not None:
            frames.append(frame)
    return frames


@given(st.lists(st.binary(max_size=80), max_size=5), st.integers(1, 200))
def test_framer_is_indifferent_to_how_bytes_arrive(payloads: list[bytes], step: int) -> None:
    """Whole, byte by byte, or anything between: the same messages come out."""
    data = b"".join(message(number, payload) for number, payload in enumerate(payloads))
    framer = Framer(flags=0)
    frames = cut(framer, data, step)
    assert [(frame.number, frame.payload) for frame in frames] == list(enumerate(payloads))
    assert framer.idle


def test_framer_wants_the_header_then_exactly_the_payload() -> None:
    """Never a byte of the next message, so a descriptor is never the next message's."""
    framer = Framer(flags=0)
    assert framer.want == 12
    data = message(2, bytes(8))
    assert framer.feed(data[:5]) is None
    assert framer.want == 7
    assert not framer.idle
    assert framer.feed(data[5:12]) is None
    assert framer.want == 8
    assert framer.feed(data[12:]) is not None
    assert framer.want == 12


def test_framer_keeps_trailing_bytes_for_the_next_message() -> None:
    """What follows a message is the next one's beginning."""
    framer = Framer(flags=0)
    frames = cut(framer, message(1) + message(3)[:7], 100)
    assert [frame.number for frame in frames] == [1]
    assert framer.want == 5


def test_framer_refuses_more_than_it_wanted() -> None:
    """A transport that over-reads is our bug, and its descriptors are closed."""
    framer = Framer(flags=0)
    with pytest.raises(ValueError, match="wanted"):
        framer.feed(bytes(13), some_fds(1))


@pytest.mark.parametrize("flags", [0, 2, 3, 1 | FLAG_REPLY])
def test_framer_refuses_wrong_flags(flags: int) -> None:
    """Version 1, and no reply where a request is due."""
    framer = Framer(flags=0)
    with pytest.raises(ProtocolError, match="flags"):
        framer.feed(message(1, flags=flags), some_fds(2))


def test_framer_refuses_a_payload_nobody_sends() -> None:
    """A size is refused before a byte of it is awaited."""
    framer = Framer(flags=0)
    with pytest.raises(ProtocolError, match="payload"):
        framer.feed(message(1, bytes(MAX_PAYLOAD + 1))[:12])


def test_framer_refuses_too_many_descriptors() -> None:
    """Nine descriptors are one too many, however they arrive; all are closed."""
    framer = Framer(flags=0)
    framer.feed(message(5, bytes(8))[:6], some_fds(5))
    with pytest.raises(ProtocolError, match="file descriptors"):
        framer.feed(message(5, bytes(8))[6:12], some_fds(4))


def test_framer_gives_descriptors_to_the_message_in_hand() -> None:
    """They arrive with the header, or with the payload; order is kept."""
    framer = Framer(flags=0)
    first, second = some_fds(2)
    data = message(5, bytes(8))
    framer.feed(data[:12], [first])
    frame = framer.feed(data[12:], [second])
    assert frame is not None
    assert [fd.take() for fd in frame.fds] == [first, second]
    os.close(first)
    os.close(second)


def test_framer_close_drops_half_a_message() -> None:
    """An end of file in the middle of a message leaves nothing open."""
    framer = Framer(flags=0)
    framer.feed(message(12, bytes(8))[:12], some_fds(1))
    framer.close()
    assert framer.idle
    assert framer.want == 12


def test_encode_writes_header_and_payload() -> None:
    """Replies carry exactly VERSION and REPLY, which QEMU compares for equality."""
    assert encode(11, FLAG_REPLY, b"abc") == bytes.fromhex("0b000000 05000000 03000000") + b"abc"
