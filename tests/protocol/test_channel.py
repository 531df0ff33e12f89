import struct

import pytest
from frontend_bytes import NEED_REPLY, REPLY, VERSION, message, some_fds, u64

from vhostblk.errors import ProtocolError
from vhostblk.protocol.channel import Ack, Channel, ConfigChange, IotlbMiss
from vhostblk.spec.vhost_user import BackendRequest

ACK = VERSION | REPLY


def test_config_change_has_no_payload() -> None:
    """Golden bytes; need_reply only when it is asked for."""
    channel = Channel()
    assert channel.encode(ConfigChange()) == message(2)
    asked = channel.encode(ConfigChange(need_reply=True))
    assert asked == message(2, flags=VERSION | NEED_REPLY)


def test_miss_always_asks_for_an_ack() -> None:
    """
    Golden bytes of a MISS: a page, what for, type 1, 32 bytes as the C compiler pads it.

    Source: traces/README.md, 8; CONFIDENTIAL.md, 3.4: QEMU says no only to who asked.
    """
    channel = Channel()
    payload = struct.pack("=QQQBB6x", 0xFFFF_F000, 0x1000, 0, 2, 1)
    asked = channel.encode(IotlbMiss(iova=0xFFFF_F000, perm=2))
    assert asked == message(1, payload, VERSION | NEED_REPLY)
    answer = message(1, u64(1), ACK)
    assert channel.receive(answer[:12]) is None
    assert channel.receive(answer[12:]) == Ack(BackendRequest.IOTLB_MSG, 1)


def test_ack_answers_the_request_that_asked() -> None:
    """Whole, or byte by byte."""
    for step in (1, 20):
        channel = Channel()
        channel.encode(ConfigChange())
        channel.encode(ConfigChange(need_reply=True))
        data, ack = message(2, u64(7), ACK), None
        while data:
            assert ack is None
            size = min(step, channel.want)
            ack = channel.receive(data[:size])
            data = data[size:]
        assert ack == Ack(BackendRequest.CONFIG_CHANGE_MSG, 7)


def test_ack_that_is_not_due_is_an_error() -> None:
    """Nobody asked, or something else was asked, or it brings a descriptor."""
    channel = Channel()
    with pytest.raises(ProtocolError, match="not due"):
        channel.receive(message(2, flags=ACK)[:12])
    channel.encode(ConfigChange(need_reply=True))
    with pytest.raises(ProtocolError, match="not due"):
        channel.receive(message(1, flags=ACK)[:12])
    with pytest.raises(ProtocolError, match="not due"):
        channel.receive(message(2, flags=ACK), some_fds(1))


def test_ack_of_the_wrong_size_is_an_error() -> None:
    """An ack is a u64."""
    channel = Channel()
    channel.encode(ConfigChange(need_reply=True))
    data = message(2, bytes(4), ACK)
    channel.receive(data[:12])
    with pytest.raises(ProtocolError, match="an ack of 4 bytes"):
        channel.receive(data[12:])


def test_request_on_the_channel_is_an_error() -> None:
    """The front-end never asks anything here."""
    channel = Channel()
    with pytest.raises(ProtocolError, match="flags"):
        channel.receive(message(2, flags=VERSION))


def test_channel_close_drops_half_an_ack() -> None:
    """Descriptors that came with it are closed."""
    channel = Channel()
    channel.receive(message(2, u64(0), ACK)[:12], some_fds(2))
    channel.close()
    assert channel.want == 12
