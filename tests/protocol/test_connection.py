import os
import struct
from errno import EINVAL, EOPNOTSUPP, EPROTO, ETIMEDOUT

import pytest
from frontend_bytes import (
    NEED_REPLY,
    REGION,
    REPLY_ACK_SET,
    SAMPLES,
    VERSION,
    Sample,
    message,
    some_fds,
    u64,
    vring,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vhostblk.errors import ProtocolError, Refused
from vhostblk.protocol.connection import Connection
from vhostblk.protocol.describe import describe
from vhostblk.protocol.messages import (
    GetConfig,
    GetVringBase,
    Invalid,
    Received,
    SetVringKick,
    SetVringNum,
    close_fds,
)
from vhostblk.protocol.replies import InflightRegion
from vhostblk.protocol.state import Phase
from vhostblk.spec.vhost_user import ProtocolFeature, Request

ASKS = VERSION | NEED_REPLY
NO_ACK = REPLY_ACK_SET & ~ProtocolFeature.REPLY_ACK


def deliver(connection: Connection, data: bytes, fds: int = 0, step: int = 4096) -> Received:
    """Give one message to *connection* in reads of at most *step* bytes, fds with the first."""
    numbers = some_fds(fds)
    received = None
    while data:
        assert received is None
        size = min(step, connection.want)
        received = connection.receive(data[:size], numbers)
        data, numbers = data[size:], []
    assert received is not None
    return received


def agree(features: int, virtio: int = 1 << 30) -> Connection:
    """Return a connection that has acked *features* and sent SET_FEATURES."""
    connection = Connection(queues=2)
    for data in (message(16, u64(features)), message(2, u64(virtio))):
        assert connection.reply(deliver(connection, data), None) == (b"", ())
    return connection


def ack(number: int, value: int) -> bytes:
    return message(number, u64(value), 0x5)


@pytest.mark.parametrize("step", [1, 4096])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: Request(sample.number).name)
def test_connection_receives_every_message(
    connection: Connection, sample: Sample, step: int
) -> None:
    """All 43 are understood, whole and byte by byte, and the next one begins after them."""
    data = message(sample.number, sample.payload, ASKS)
    received = deliver(connection, data, sample.fds, step)
    assert not isinstance(received, Invalid)
    assert received.request == sample.number
    assert received.need_reply
    assert connection.want == 12
    assert connection.idle
    close_fds(received)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: Request(sample.number).name)
def test_message_that_is_cut_off_leaves_nothing(connection: Connection, sample: Sample) -> None:
    """End of file at every byte of every message: descriptors are closed."""
    data = message(sample.number, sample.payload)
    for length in range(1, min(len(data), 60)):
        fds = some_fds(sample.fds)
        part = data[:length]
        connection.receive(part[:12], fds)
        if len(part) > 12:
            connection.receive(part[12:])
        assert not connection.idle
        connection.close()
        assert connection.idle


def test_ack_is_sent_when_asked_and_only_then(connection: Connection) -> None:
    """0 means done; without need_reply nothing is sent."""
    asked = deliver(connection, message(8, vring(0, 128), ASKS))
    assert connection.reply(asked, None) == (ack(8, 0), ())
    silent = deliver(connection, message(8, vring(0, 128)))
    assert silent == SetVringNum(index=0, num=128)
    assert connection.reply(silent, None) == (b"", ())


def test_refusal_is_an_errno_or_the_end(connection: Connection) -> None:
    """Non-zero ack if asked for one; else the connection cannot go on."""
    refused = Refused(ETIMEDOUT, "no")
    asked = deliver(connection, message(8, vring(0, 3), ASKS))
    assert connection.reply(asked, refused) == (ack(8, ETIMEDOUT), ())
    silent = deliver(connection, message(8, vring(0, 3)))
    with pytest.raises(ProtocolError, match="refused: no"):
        connection.reply(silent, refused)


def test_ack_needs_the_protocol_feature() -> None:
    """Without REPLY_ACK the need_reply bit means nothing."""
    connection = agree(NO_ACK)
    received = deliver(connection, message(8, vring(0, 128), ASKS))
    assert not received.need_reply
    assert connection.reply(received, None) == (b"", ())


def test_protocol_features_are_in_force_from_the_next_message() -> None:
    """SET_PROTOCOL_FEATURES is in force before SET_FEATURES, but not for itself."""
    connection = Connection(queues=2)
    first = deliver(connection, message(16, u64(REPLY_ACK_SET), ASKS))
    assert connection.reply(first, None) == (b"", ())
    second = deliver(connection, message(3, flags=ASKS))
    assert connection.reply(second, None) == (ack(3, 0), ())


def test_refused_features_are_not_in_force() -> None:
    """What was refused changes nothing."""
    connection = agree(REPLY_ACK_SET)
    received = deliver(connection, message(16, u64(1 << 40), ASKS))
    connection.reply(received, Refused(EINVAL, "never offered"))
    assert connection.state.protocol_features == REPLY_ACK_SET


@pytest.mark.parametrize("number", [1, 15, 17, 36, 40])
@pytest.mark.parametrize("flags", [VERSION, ASKS])
def test_number_is_answered_with_a_u64(connection: Connection, number: int, flags: int) -> None:
    """One reply, asked for or not, flags exactly VERSION and REPLY."""
    received = deliver(connection, message(number, flags=flags))
    assert connection.reply(received, 0x1234) == (ack(number, 0x1234), ())


def test_base_is_answered_with_its_ring(connection: Connection) -> None:
    """Index and base, eight bytes."""
    received = deliver(connection, message(11, vring(1, 0)))
    assert received == GetVringBase(index=1)
    assert connection.reply(received, 0x80008000) == (message(11, vring(1, 0x80008000), 5), ())


def test_config_is_echoed_with_its_bytes(connection: Connection) -> None:
    """Offset, size and flags as asked, then exactly that many bytes."""
    asked = struct.pack("=III", 0, 57, 0)
    received = deliver(connection, message(24, asked + bytes(57)))
    assert received == GetConfig(offset=0, size=57, flags=0)
    config = bytes(range(57))
    assert connection.reply(received, config) == (message(24, asked + config, 5), ())
    with pytest.raises(ValueError, match="config space"):
        connection.reply(received, config[:-1])


def test_config_that_cannot_be_is_an_empty_reply(connection: Connection) -> None:
    """The standard's error: no payload, and the connection goes on."""
    received = deliver(connection, message(24, struct.pack("=III", 255, 2, 0) + bytes(2)))
    assert isinstance(received, Invalid)
    refused = Refused(received.errno, received.reason)
    assert connection.reply(received, refused) == (message(24, b"", 5), ())


def test_inflight_region_is_answered_with_its_descriptor(connection: Connection) -> None:
    """24 bytes and one descriptor, which stays its owner's."""
    request = struct.pack("=QQHHI", 0, 0, 2, 128, 0)
    received = deliver(connection, message(31, request))
    region = InflightRegion(mmap_size=8192, mmap_offset=0, num_queues=2, queue_size=128, fd=9)
    expected = message(31, struct.pack("=QQHHI", 8192, 0, 2, 128, 0), 5)
    assert connection.reply(received, region) == (expected, (9,))
    assert connection.reply(received, Refused(EINVAL, "no")) == (message(31, bytes(24), 5), ())


def test_log_base_is_answered_unasked_with_log_shmfd(connection: Connection) -> None:
    """QEMU waits for a reply although it does not ask for one."""
    received = deliver(connection, message(6, struct.pack("=QQ", 0x4000, 0)), 1)
    assert connection.reply(received, None) == (ack(6, 0), ())
    assert connection.reply(received, Refused(EOPNOTSUPP, "no")) == (ack(6, EOPNOTSUPP), ())
    close_fds(received)


def test_log_base_without_log_shmfd_is_acked_as_any_other() -> None:
    """Without the feature nobody waits."""
    connection = agree(ProtocolFeature.MQ)
    received = deliver(connection, message(6, u64(0)))
    assert connection.reply(received, None) == (b"", ())


@pytest.mark.parametrize("outcome", [None, b"bytes"])
@pytest.mark.parametrize(
    "data",
    [message(1), message(11, vring(0, 0)), message(31, bytes(24))],
)
def test_answer_of_the_wrong_kind_is_our_bug(
    connection: Connection, data: bytes, outcome: bytes | None
) -> None:
    """A handler that forgot its value is told, not sent."""
    with pytest.raises(TypeError, match="is due"):
        connection.reply(deliver(connection, data), outcome)


@pytest.mark.parametrize("number", [0, 44, 99, 0xFFFFFFFF])
def test_unknown_message_is_refused_or_the_end(connection: Connection, number: int) -> None:
    """Non-zero ack if asked; never 0, which would be a yes."""
    received = deliver(connection, message(number, b"what", ASKS), 2)
    assert isinstance(received, Invalid)
    refused = Refused(received.errno, received.reason)
    assert connection.reply(received, refused) == (ack(number, EOPNOTSUPP), ())
    with pytest.raises(ProtocolError, match="unknown"):
        deliver(connection, message(number, b"what"), 2)


@pytest.mark.parametrize(
    ("number", "payload", "fds", "errno"),
    [
        (8, bytes(7), 0, EINVAL),
        (8, vring(0, 1), 1, EINVAL),
        (8, vring(2, 1), 0, EINVAL),
        (9, struct.pack("=II4Q", 0xFFFFFFFF, 0, 0, 0, 0, 0), 0, EINVAL),
        (12, u64(2), 1, EINVAL),
        (13, u64(0x102), 0, EINVAL),
        (18, vring(2, 1), 0, EINVAL),
        (5, struct.pack("=II", 2, 0) + REGION + REGION, 1, EINVAL),
        (37, bytes(8) + REGION, 0, EINVAL),
    ],
)
def test_bad_message_is_refused_or_the_end(
    connection: Connection, number: int, payload: bytes, fds: int, errno: int
) -> None:
    """Size, descriptors and index are checked; the stream stays in step."""
    received = deliver(connection, message(number, payload, ASKS), fds)
    assert isinstance(received, Invalid)
    assert received.errno == errno
    refused = Refused(received.errno, received.reason)
    assert connection.reply(received, refused) == (ack(number, errno), ())
    assert connection.want == 12
    with pytest.raises(ProtocolError, match=Request(number).name):
        deliver(connection, message(number, payload), fds)


def test_bad_index_without_room_for_a_no_is_the_end(connection: Connection) -> None:
    """A reply to GET_VRING_BASE cannot say no, need_reply or not."""
    with pytest.raises(ProtocolError, match="ring 2 of 2"):
        deliver(connection, message(11, vring(2, 0), ASKS))


def test_message_without_its_feature_is_refused() -> None:
    """A message exists only with its protocol feature."""
    connection = agree(ProtocolFeature.REPLY_ACK)
    received = deliver(connection, message(37, bytes(8) + REGION, ASKS), 1)
    assert isinstance(received, Invalid)
    assert received.errno == EPROTO
    assert "CONFIGURE_MEM_SLOTS" in received.reason
    with pytest.raises(ProtocolError, match="STATUS"):
        deliver(connection, message(40))


def test_ring_does_not_start_before_features_are_acked() -> None:
    """CALL and ERR come early; KICK and ENABLE cannot."""
    connection = Connection(queues=1)
    connection.reply(deliver(connection, message(16, u64(REPLY_ACK_SET))), None)
    for number in (13, 14):
        received = deliver(connection, message(number, u64(0), ASKS), 1)
        assert connection.reply(received, None) == (ack(number, 0), ())
        close_fds(received)
    with pytest.raises(ProtocolError, match="before SET_FEATURES"):
        deliver(connection, message(12, u64(0)), 1)
    connection.reply(deliver(connection, message(2, u64(1 << 30))), None)
    assert connection.state.phase is Phase.NEGOTIATED
    close_fds(deliver(connection, message(12, u64(0)), 1))


def test_descriptor_survives_being_taken(connection: Connection) -> None:
    """A handler's descriptor stays open when the rest is closed."""
    received = deliver(connection, message(12, u64(0)), 1)
    assert isinstance(received, SetVringKick)
    assert received.fd is not None
    taken = received.fd.take()
    close_fds(received)
    os.fstat(taken)
    os.close(taken)


NUMBERS = st.one_of(st.integers(0, 50), st.integers(0, (1 << 32) - 1))
PAYLOADS = st.one_of(
    st.sampled_from([sample.payload for sample in SAMPLES]),
    st.sampled_from([8, 16, 24, 32, 40]).flatmap(
        lambda size: st.binary(min_size=size, max_size=size)
    ),
    st.binary(max_size=100),
    st.just(b"\xff" * 40),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(NUMBERS, PAYLOADS, st.integers(0, 3), st.booleans()), max_size=6))
def test_no_message_does_worse_than_end_the_connection(
    stream: list[tuple[int, bytes, int, bool]],
) -> None:
    """Whatever comes: a message, a refusal that can be sent, or ProtocolError; nothing leaks."""
    connection = agree((1 << 20) - 1)
    for number, payload, fds, asks in stream:
        try:
            received = deliver(connection, message(number, payload, ASKS if asks else VERSION), fds)
        except ProtocolError:
            return
        assert describe(received)
        close_fds(received)
        if isinstance(received, Invalid):
            sent, _ = connection.reply(received, Refused(received.errno, received.reason))
            assert sent
