"""
Golden bytes of every message the front-end sends, and what it makes of replies.

The flags are 1, or 9 for messages QEMU has acknowledged.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from guest_peers.scripted import scripted, u64

from vhostblk.guest import FrontEnd, GuestError, GuestMemory, NackError, Region, wire
from vhostblk.guest.layout import PAGE
from vhostblk.spec.vhost_user import VHOST_F_LOG_ALL, ProtocolFeature, Request

Send = Callable[[FrontEnd], object]

PLAIN: dict[str, tuple[Send, str]] = {
    "SET_OWNER": (lambda f: f.set_owner(), "03 0"),
    "SET_FEATURES": (lambda f: f.set_features(0x140000046), "02 8 4600004001000000"),
    "SET_PROTOCOL_FEATURES": (
        lambda f: f.set_protocol_features(ProtocolFeature.REPLY_ACK),
        "10 8 0800000000000000",
    ),
    "RESET_DEVICE": (lambda f: f.reset_device(), "22 0"),
    "SET_STATUS": (lambda f: f.set_status(15), "27 8 0f00000000000000"),
    "SET_VRING_NUM": (lambda f: f.set_vring_num(2, 256), "08 8 02000000 00010000"),
    "SET_VRING_BASE": (lambda f: f.set_vring_base(2, 65535), "0a 8 02000000 ffff0000"),
    "SET_VRING_ADDR": (
        lambda f: f.set_vring_addr(wire.VringAddr(index=1, desc=2, used=3, avail=4, log=5)),
        "09 40 01000000 00000000 02"
        + "00" * 7
        + "03"
        + "00" * 7
        + "04"
        + "00" * 7
        + "05"
        + "00" * 7,
    ),
    "GET_VRING_BASE": (lambda f: f.get_vring_base(1), "0b 8 01000000 00000000"),
    "GET_CONFIG": (lambda f: f.get_config(8, 4), "18 16 08000000 04000000 00000000 00000000"),
}
ACKNOWLEDGED: dict[str, tuple[Send, str]] = {
    "SET_VRING_KICK none": (lambda f: f.set_vring_kick(1, None), "0c 8 0101000000000000"),
    "SET_VRING_CALL none": (lambda f: f.set_vring_call(1, None), "0d 8 0101000000000000"),
    "SET_VRING_ERR none": (lambda f: f.set_vring_err(1, None), "0e 8 0101000000000000"),
    "SET_VRING_ENABLE": (lambda f: f.set_vring_enable(3, enable=True), "12 8 03000000 01000000"),
    "SET_CONFIG": (lambda f: f.set_config(32, b"\1"), "19 13 20000000 01000000 00000000 01"),
    "SET_FEATURES logging": (
        lambda f: f.set_features(VHOST_F_LOG_ALL),
        "02 8 0000000400000000",
    ),
    "SET_VRING_ADDR logging": (
        lambda f: f.set_vring_addr(
            wire.VringAddr(index=0, flags=1, desc=0, used=0, avail=0, log=0)
        ),
        "09 40 00000000 01000000" + "00" * 32,
    ),
}


def golden(row: str, flags: int) -> bytes:
    """Turn "request size payload" into the bytes of the message."""
    request, size, *payload = row.split()
    return bytes([int(request, 16), 0, 0, 0, flags, 0, 0, 0, int(size), 0, 0, 0]) + bytes.fromhex(
        "".join(payload)
    )


def as_bytes(message: wire.Message) -> bytes:
    head = wire.HEADER.pack(message.request, message.flags, len(message.payload))
    return head + message.payload


def test_plain_messages() -> None:
    """Messages QEMU does not have acknowledged are sent without need_reply."""
    with scripted({}) as backend:
        frontend = FrontEnd.over(backend.front)
        frontend.protocol_features = ProtocolFeature.REPLY_ACK
        for send, _ in PLAIN.values():
            send(frontend)
    assert [as_bytes(m) for m in backend.seen] == [golden(row, 1) for _, row in PLAIN.values()]


def test_acknowledged_messages() -> None:
    """Messages QEMU has acknowledged are, once REPLY_ACK is agreed on."""
    with scripted({}) as backend:
        frontend = FrontEnd.over(backend.front)
        frontend.protocol_features = ProtocolFeature.REPLY_ACK
        for send, _ in ACKNOWLEDGED.values():
            send(frontend)
    rows = [row for _, row in ACKNOWLEDGED.values()]
    assert [as_bytes(m) for m in backend.seen] == [golden(row, 9) for row in rows]


def test_nothing_is_acknowledged_without_reply_ack() -> None:
    """Without REPLY_ACK the same messages go without; GET_FEATURES follows SET_VRING_ENABLE."""
    with scripted({Request.GET_FEATURES: u64(0)}) as backend:
        frontend = FrontEnd.over(backend.front)
        for send, _ in ACKNOWLEDGED.values():
            send(frontend)
        frontend.get_features()
    rows = [row for _, row in ACKNOWLEDGED.values()]
    rows.insert(4, "01 0")
    assert [as_bytes(m) for m in backend.seen] == [golden(row, 1) for row in [*rows, "01 0"]]


def test_memory_messages_carry_descriptors() -> None:
    """One descriptor for each region, in the order of the regions; removing carries none."""
    with (
        scripted({}) as backend,
        GuestMemory([Region(0, PAGE), Region(PAGE, PAGE)], own_memfds=True) as memory,
    ):
        frontend = FrontEnd.over(backend.front)
        frontend.protocol_features = ProtocolFeature.REPLY_ACK
        frontend.set_mem_table(memory.mappings)
        frontend.rem_mem_reg(memory.mappings[0])
        frontend.add_mem_reg(memory.mappings[0])
    assert backend.names == ["SET_MEM_TABLE!", "REM_MEM_REG!", "ADD_MEM_REG!"]
    assert [len(m.fds) for m in backend.seen] == [2, 0, 1]
    assert [len(m.payload) for m in backend.seen] == [72, 40, 40]


def test_vring_fds_carry_the_index() -> None:
    """With a descriptor bit 8 is clear."""
    with scripted({}) as backend, Path(os.devnull).open() as file:
        FrontEnd.over(backend.front).set_vring_call(3, file.fileno())
        FrontEnd.over(backend.front).set_backend_req_fd(file.fileno())
        FrontEnd.over(backend.front).get_vring_base(0)
    assert [(m.request, m.payload, len(m.fds)) for m in backend.seen[:2]] == [
        (Request.SET_VRING_CALL, u64(3), 1),
        (Request.SET_BACKEND_REQ_FD, b"", 1),
    ]


def test_refusal_names_the_message() -> None:
    """A non-zero acknowledgement is an error with the code."""
    with scripted({}, {Request.SET_VRING_ENABLE: 22}) as backend:
        frontend = FrontEnd.over(backend.front)
        frontend.protocol_features = ProtocolFeature.REPLY_ACK
        with pytest.raises(NackError, match=r"refused SET_VRING_ENABLE.*0x16") as error:
            frontend.set_vring_enable(0, enable=True)
    assert (error.value.request, error.value.code) == ("SET_VRING_ENABLE", 22)


def test_get_u64_messages() -> None:
    """Questions return what the back-end says."""
    answers: dict[int, bytes] = {
        Request.GET_FEATURES: u64(1 << 32),
        Request.GET_PROTOCOL_FEATURES: u64(0x208),
        Request.GET_QUEUE_NUM: u64(7),
        Request.GET_MAX_MEM_SLOTS: u64(509),
    }
    with scripted(answers) as backend:
        frontend = FrontEnd.over(backend.front)
        assert frontend.get_features() == 1 << 32
        assert frontend.get_protocol_features() == (
            ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK
        )
        assert frontend.get_queue_num() == 7
        assert frontend.get_max_mem_slots() == 509
        frontend.set_status(15)
        assert frontend.get_status() == 15


@pytest.mark.parametrize(
    "reply",
    [
        wire.HEADER.pack(1, 0x1, 8) + u64(0),
        wire.HEADER.pack(1, 0xD, 8) + u64(0),
        wire.HEADER.pack(2, 0x5, 8) + u64(0),
        wire.HEADER.pack(1, 0x5, 4) + u64(0)[:4],
    ],
    ids=["not a reply", "need_reply set", "other request", "short"],
)
def test_bad_replies_are_errors(reply: bytes) -> None:
    """A reply has flags 5, the request's number and its size, as QEMU insists."""
    front, back = socket.socketpair()
    with back, FrontEnd.over(front) as frontend:
        back.sendall(reply)
        with pytest.raises(GuestError, match="repl"):
            frontend.get_features()


def test_get_vring_base_checks_the_ring() -> None:
    """A base of another ring is not this ring's base."""
    front, back = socket.socketpair()
    with back, FrontEnd.over(front) as frontend:
        back.sendall(wire.message(11, wire.VRING_STATE.pack(1, 0), reply=True))
        with pytest.raises(GuestError, match="base of ring 0, got that of ring 1"):
            frontend.get_vring_base(0)


def test_get_config_checks_the_echo() -> None:
    """A config reply of another place or size is refused."""
    front, back = socket.socketpair()
    with back, FrontEnd.over(front) as frontend:
        for payload in (wire.config(0, b""), wire.config(4, b"12"), wire.config(0, b"123")):
            back.sendall(wire.message(24, payload, reply=True))
            with pytest.raises(GuestError, match="GET_CONFIG of 2 bytes at 0"):
                frontend.get_config(0, 2)
        back.sendall(wire.message(24, wire.config(0, b"12"), reply=True))
        assert frontend.get_config(0, 2) == b"12"


def test_send_raw_sends_what_it_is_given() -> None:
    """Half a message and its other half are one message to the other side."""
    with scripted({}) as backend:
        frontend = FrontEnd.over(backend.front)
        whole = wire.message(Request.SET_STATUS, u64(3))
        frontend.send_raw(whole[:7])
        frontend.send_raw(whole[7:])
        frontend.get_vring_base(0)
    assert as_bytes(backend.seen[0]) == whole
