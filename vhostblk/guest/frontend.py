"""
The front-end's half of vhost-user: one short method per message.

Messages QEMU acknowledges are sent with need_reply as soon as REPLY_ACK is agreed on, and only
those, so that a back-end sees from here what it will see from QEMU.  Anything else, well-formed or
not, goes through ``send_raw``.

Spec: vhost-user, "Front-end message types", "REPLY_ACK".
"""

import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from vhostblk.guest import wire
from vhostblk.guest.connection import Connection, close_all
from vhostblk.guest.errors import GuestError, NackError
from vhostblk.guest.inflight import LAYOUT, Inflight
from vhostblk.guest.mapping import Mapping
from vhostblk.spec import vhost_user as vu
from vhostblk.spec.vhost_user import ProtocolFeature, Request

REPLY_FLAGS = vu.VERSION | vu.FLAG_REPLY


class FrontEnd:
    """
    A connection to a back-end.

    Args:
        connection: Owned.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.protocol_features = ProtocolFeature(0)
        """Agreed on; decides which messages ask for an acknowledgement."""
        self.lock = threading.RLock()
        """Held from a message to its reply: QEMU does nothing else meanwhile."""

    @classmethod
    def connect(cls, path: str | Path, *, timeout: float = 10.0) -> "FrontEnd":
        """
        Connect to a listening back-end.

        Args:
            path: Its socket.
            timeout: Seconds each message and each reply may take.

        Returns:
            The front-end; nothing has been sent.

        Raises:
            DisconnectedError: Nobody listens there.
        """
        return cls(Connection.connect(path, timeout))

    @classmethod
    def over(cls, sock: socket.socket, *, timeout: float = 10.0) -> "FrontEnd":
        """Speak over a connected socket (of a back-end started with ``--fd``), which is owned."""
        return cls(Connection(sock, timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; again is harmless."""
        self.connection.close()

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """
        Send any bytes: half a message, several, or none at all.

        Args:
            data: As they go out.
            fds: Descriptors to send with the first byte; stay the caller's.

        Raises:
            DisconnectedError: The back-end is gone.
            DeadlineError: It does not read.
        """
        self.connection.send(data, fds)

    def receive_reply(self, request: int, timeout: float | None = None) -> wire.Message:
        """
        Receive the reply to *request*.

        Args:
            request: Its number.
            timeout: Seconds; ``None`` for the connection's.

        Returns:
            The reply; its descriptors are the caller's to close.

        Raises:
            DisconnectedError: The back-end closed instead.
            DeadlineError: Nothing came.
            GuestError: The flags are not exactly a reply's, or it answers another request.
        """
        name = wire.request_name(request)
        reply = self.connection.receive(f"the reply to {name}", timeout)
        if reply.flags != REPLY_FLAGS or reply.request != request:
            close_all(reply.fds)
            raise GuestError(
                f"the reply to {name} has flags {reply.flags:#x} and "
                f"is of {wire.request_name(reply.request)}"
            )
        return reply

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that has no reply, without asking for an acknowledgement."""
        with self.lock:
            self.connection.send(wire.message(request, payload), fds)

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> wire.Message:
        """Send a message that has a reply of its own, and return that."""
        with self.lock:
            self.connection.send(wire.message(request, payload), fds)
            return self.receive_reply(request)

    def acknowledged(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """
        Send a message that has no reply, and have it acknowledged if REPLY_ACK is agreed on.

        Args:
            request: Its number.
            payload: Bytes behind the header.
            fds: Stay the caller's.

        Raises:
            NackError: The back-end refused.
            GuestError: It answered something else.
        """
        need_reply = ProtocolFeature.REPLY_ACK in self.protocol_features
        with self.lock:
            self.connection.send(wire.message(request, payload, need_reply=need_reply), fds)
            if not need_reply:
                return
            code = wire.parse_u64(self.receive_reply(request).payload)
        if code:
            raise NackError(wire.request_name(request), code)

    def get_u64(self, request: int) -> int:
        """Send a message whose reply is a u64, and return that."""
        return wire.parse_u64(self.ask(request).payload)

    def get_features(self) -> int:
        """Return the virtio features offered."""
        return self.get_u64(Request.GET_FEATURES)

    def set_features(self, features: int) -> None:
        """Acknowledge virtio features."""
        payload = wire.U64.pack(features)
        if features & vu.VHOST_F_LOG_ALL:
            self.acknowledged(Request.SET_FEATURES, payload)
        else:
            self.tell(Request.SET_FEATURES, payload)

    def get_protocol_features(self) -> ProtocolFeature:
        """Return the protocol features offered."""
        return ProtocolFeature(self.get_u64(Request.GET_PROTOCOL_FEATURES))

    def set_protocol_features(self, features: ProtocolFeature) -> None:
        """Agree on protocol features; in force at once."""
        self.tell(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(int(features)))
        self.protocol_features = features

    def set_owner(self) -> None:
        """Take ownership of the session."""
        self.tell(Request.SET_OWNER)

    def reset_owner(self) -> None:
        """Give the session up; deprecated, and QEMU never sends it."""
        self.tell(Request.RESET_OWNER)

    def reset_device(self) -> None:
        """Reset the device; needs RESET_DEVICE."""
        self.tell(Request.RESET_DEVICE)

    def get_status(self) -> int:
        """Return the device status; needs STATUS."""
        return self.get_u64(Request.GET_STATUS)

    def set_status(self, status: int) -> None:
        """Set the device status; needs STATUS."""
        self.tell(Request.SET_STATUS, wire.U64.pack(status))

    def get_queue_num(self) -> int:
        """Return how many queues the back-end can serve; needs MQ."""
        return self.get_u64(Request.GET_QUEUE_NUM)

    def get_max_mem_slots(self) -> int:
        """Return how many regions the back-end takes; needs CONFIGURE_MEM_SLOTS."""
        return self.get_u64(Request.GET_MAX_MEM_SLOTS)

    def set_backend_req_fd(self, fd: int) -> None:
        """Hand over the back-end's end of its own channel; needs BACKEND_REQ."""
        self.acknowledged(Request.SET_BACKEND_REQ_FD, fds=[fd])

    def set_mem_table(self, mappings: Sequence[Mapping]) -> None:
        """Replace all memory by *mappings*, eight at most."""
        self.acknowledged(Request.SET_MEM_TABLE, wire.mem_table(mappings), [m.fd for m in mappings])

    def add_mem_reg(self, mapping: Mapping) -> None:
        """Add one region; needs CONFIGURE_MEM_SLOTS."""
        self.acknowledged(Request.ADD_MEM_REG, wire.single_region(mapping), [mapping.fd])

    def rem_mem_reg(self, mapping: Mapping) -> None:
        """Remove one region; needs CONFIGURE_MEM_SLOTS."""
        self.acknowledged(Request.REM_MEM_REG, wire.single_region(mapping))

    def set_vring_num(self, index: int, size: int) -> None:
        """Set the ring's size in descriptors."""
        self.tell(Request.SET_VRING_NUM, wire.VRING_STATE.pack(index, size))

    def set_vring_base(self, index: int, base: int) -> None:
        """Set the index of the next available entry."""
        self.tell(Request.SET_VRING_BASE, wire.VRING_STATE.pack(index, base))

    def get_vring_base(self, index: int) -> int:
        """Stop the ring and return the index of the next available entry."""
        request = Request.GET_VRING_BASE
        payload = self.ask(request, wire.VRING_STATE.pack(index, 0)).payload
        if len(payload) != wire.VRING_STATE.size:
            raise GuestError(f"the reply to GET_VRING_BASE has {len(payload)} bytes")
        echoed, base = wire.VRING_STATE.unpack(payload)
        if echoed != index:
            raise GuestError(f"asked for the base of ring {index}, got that of ring {echoed}")
        return int(base)

    def set_vring_addr(self, addr: wire.VringAddr) -> None:
        """Tell where the ring lies; acknowledged only while its writes are logged, as QEMU does."""
        payload = wire.vring_addr(addr)
        if addr.flags:
            self.acknowledged(Request.SET_VRING_ADDR, payload)
        else:
            self.tell(Request.SET_VRING_ADDR, payload)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        """Hand over the kick eventfd; ``None``: the back-end has to poll."""
        self._set_vring_fd(Request.SET_VRING_KICK, index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        """Hand over the call eventfd; ``None``: it must not signal."""
        self._set_vring_fd(Request.SET_VRING_CALL, index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        """Hand over the err eventfd, or ``None``."""
        self._set_vring_fd(Request.SET_VRING_ERR, index, fd)

    def set_vring_enable(self, index: int, *, enable: bool) -> None:
        """Let the ring be processed, or stop it from being; needs feature bit 30."""
        self.acknowledged(Request.SET_VRING_ENABLE, wire.VRING_STATE.pack(index, int(enable)))
        if ProtocolFeature.REPLY_ACK not in self.protocol_features:
            self.get_features()  # QEMU's way to wait for it

    def iotlb(self, message: wire.Iotlb) -> None:
        """Tell a translation or have one forgotten."""
        self.acknowledged(Request.IOTLB_MSG, message.pack())

    def get_inflight_fd(self, queues: int, queue_size: int) -> Inflight:
        """
        Have the back-end make an inflight region; needs INFLIGHT_SHMFD.

        Args:
            queues: How many.
            queue_size: Descriptors of each.

        Returns:
            The region, the caller's to close.

        Raises:
            GuestError: There is none for so many, or the reply is not 24 bytes and one descriptor.
        """
        asked = LAYOUT.pack(0, 0, queues, queue_size)
        reply = self.ask(Request.GET_INFLIGHT_FD, asked)
        if reply.payload == bytes(LAYOUT.size) and not reply.fds:
            raise GuestError(
                f"the back-end makes no inflight region for {queues} queues "
                f"of {queue_size} descriptors"
            )
        try:
            (fd,) = reply.fds
            return Inflight.parse(reply.payload, fd)
        except (ValueError, GuestError) as error:
            close_all(reply.fds)
            raise GuestError(f"GET_INFLIGHT_FD was answered {reply}: {error}") from error

    def set_inflight_fd(self, region: Inflight) -> None:
        """Hand an inflight region over; before memory and rings, and without an ack."""
        self.tell(Request.SET_INFLIGHT_FD, region.pack(), [region.fd])

    def set_log_base(self, fd: int, size: int, offset: int = 0) -> None:
        """Hand a dirty log over; always answered, with whatever (QEMU looks at the number only)."""
        close_all(self.ask(Request.SET_LOG_BASE, wire.LOG.pack(size, offset), [fd]).fds)

    def get_config(self, offset: int, length: int) -> bytes:
        """
        Read the config space; needs CONFIG.

        Args:
            offset: Bytes from its start.
            length: Bytes.

        Returns:
            Exactly *length* bytes.

        Raises:
            GuestError: The reply does not echo the question.
        """
        payload = self.ask(Request.GET_CONFIG, wire.config(offset, bytes(length))).payload
        head = wire.CONFIG_HEAD.size
        if len(payload) != head + length or payload[:8] != wire.config(offset, bytes(length))[:8]:
            raise GuestError(f"GET_CONFIG of {length} bytes at {offset} was answered {payload!r}")
        return payload[head:]

    def set_config(self, offset: int, data: bytes, flags: int = vu.ConfigFlag.WRITABLE) -> None:
        """Write the config space; needs CONFIG."""
        self.acknowledged(Request.SET_CONFIG, wire.config(offset, data, flags))

    def _set_vring_fd(self, request: Request, index: int, fd: int | None) -> None:
        nofd = vu.VRING_NOFD if fd is None else 0
        self.acknowledged(request, wire.U64.pack(index | nofd), () if fd is None else [fd])
