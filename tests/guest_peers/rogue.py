"""
A back-end that works, and on top of that does what a test tells it to: the negative control.

One split ring without EVENT_IDX, direct chains or one indirect table, a disk of one byte repeated.
It runs on a thread at the other end of a socket pair.  `translating` gives it an IOTLB.
"""

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from vhostblk.guest import wire
from vhostblk.guest.connection import Connection
from vhostblk.guest.errors import GuestError
from vhostblk.spec import vhost_user as vu
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature, Request
from vhostblk.spec.virtio_blk import Status

CONTENT = 0x42
"""Every byte of the disk."""
FEATURES = vr.F_VERSION_1 | vr.F_INDIRECT_DESC | vu.VHOST_USER_F_PROTOCOL_FEATURES
PROTOCOL = ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS
DESC = struct.Struct("<QIHH")


@dataclass(frozen=True, slots=True)
class Piece:
    """A descriptor."""

    gpa: int
    length: int
    writable: bool


class FaultError(Exception):
    """The device may not go there."""


class View(Protocol):
    """Guest memory as the back-end sees it."""

    @property
    def regions(self) -> list[tuple[int, int, int, mmap.mmap]]: ...
    def add(self, gpa: int, size: int, uva: int, view: mmap.mmap) -> None: ...
    def gpa(self, uva: int) -> int: ...
    def read(self, gpa: int, length: int) -> bytes: ...
    def write(self, gpa: int, data: bytes) -> None: ...
    def hear(self, message: wire.Message) -> bool: ...
    def close(self) -> None: ...


class HostView:
    """Guest memory as the back-end has it mapped."""

    def __init__(self) -> None:
        self._regions: list[tuple[int, int, int, mmap.mmap]] = []

    @property
    def regions(self) -> list[tuple[int, int, int, mmap.mmap]]:
        """Return GPA, bytes, UVA and mapping of each."""
        return self._regions

    def add(self, gpa: int, size: int, uva: int, view: mmap.mmap) -> None:
        self._regions.append((gpa, size, uva, view))

    def gpa(self, uva: int) -> int:
        for r in self._regions:
            if r[2] <= uva < r[2] + r[1]:
                return uva - r[2] + r[0]
        raise FaultError

    def read(self, gpa: int, length: int) -> bytes:
        start, view = self._find(gpa)
        return view[start : start + length]

    def write(self, gpa: int, data: bytes) -> None:
        start, view = self._find(gpa)
        view[start : start + len(data)] = data

    def hear(self, message: wire.Message) -> bool:
        """Take a message that is about memory beyond the usual; tell whether it was."""
        return message.request == Request.IOTLB_MSG

    def close(self) -> None:
        for region in self._regions:
            region[3].close()

    def _find(self, gpa: int) -> tuple[int, mmap.mmap]:
        for r in self._regions:
            if r[0] <= gpa < r[0] + r[1]:
                return gpa - r[0], r[3]
        raise FaultError


Misdeed = Callable[[View, list[Piece]], None]
"""Done before each request is served, with its chain."""
OnMap = Callable[[int, mmap.mmap, int], None]
"""Told of every region that is mapped: its descriptor, the mapping, the offset."""


@dataclass(slots=True)
class Rogue:
    """
    The back-end.

    Args:
        front: The front-end's end of the pair.
        misdeed: What it does besides.
        claim: Bytes it says it wrote; ``None``: the truth.
        status: How every request ends.
        view: Guest memory.
        map_flags: How it maps it.
        on_map: Told of it.
        features: Virtio features it offers.
        protocol: Protocol features it offers.
    """

    front: socket.socket
    misdeed: Misdeed
    claim: int | None = None
    status: bytes = b"\0"
    view: View = field(default_factory=HostView)
    map_flags: int = mmap.MAP_SHARED
    on_map: OnMap = lambda _fd, _view, _offset: None
    features: int = FEATURES
    protocol: ProtocolFeature = PROTOCOL
    _fds: dict[int, int] = field(default_factory=dict)
    _ring: tuple[int, int, int] = (0, 0, 0)
    _size: int = 0
    _next: int = 0
    _status: bytes = bytes(8)

    def run(self, connection: Connection) -> None:
        try:
            self._run(connection)
        finally:
            for fd in self._fds.values():
                os.close(fd)
            self.view.close()

    def _run(self, connection: Connection) -> None:
        with contextlib.closing(connection), contextlib.suppress(GuestError, FaultError):
            while True:
                kick = self._fds.get(Request.SET_VRING_KICK)
                waits = [connection.fileno()] + ([] if kick is None else [kick])
                ready = select.select(waits, [], [], 10)[0]
                if kick in ready:
                    os.eventfd_read(kick)
                    self._serve()
                if connection.fileno() in ready:
                    self.message(connection)

    def message(self, connection: Connection) -> None:
        message = connection.receive("a message")
        payload = self._answer(message)
        if payload is None and message.flags & vu.FLAG_NEED_REPLY:
            payload = bytes(8)
        if payload is not None:
            connection.send(wire.message(message.request, payload, reply=True))

    def _answer(self, message: wire.Message) -> bytes | None:
        payload = message.payload
        if self.view.hear(message):
            return bytes(8) if message.request == Request.SET_LOG_BASE else None
        match message.request:
            case Request.GET_FEATURES:
                return wire.U64.pack(self.features)
            case Request.GET_PROTOCOL_FEATURES:
                return wire.U64.pack(int(self.protocol))
            case Request.GET_MAX_MEM_SLOTS:
                return wire.U64.pack(8)
            case Request.ADD_MEM_REG:
                gpa, size, uva, offset = struct.unpack("<8x4Q", payload)
                mapping = mmap.mmap(message.fds[0], size, flags=self.map_flags, offset=offset)
                self.on_map(message.fds[0], mapping, offset)
                self.view.add(gpa, size, uva, mapping)
                os.close(message.fds[0])
            case _:
                return self._ring_message(message)
        return None

    def _ring_message(self, message: wire.Message) -> bytes | None:
        payload = message.payload
        match message.request:
            case Request.GET_VRING_BASE:
                return wire.VRING_STATE.pack(0, self._next)
            case Request.SET_VRING_BASE:
                self._next = wire.VRING_STATE.unpack(payload)[1]
            case Request.SET_VRING_NUM:
                self._size = wire.VRING_STATE.unpack(payload)[1]
            case Request.SET_VRING_ADDR:
                _, _, desc, used, avail, _ = wire.VRING_ADDR.unpack(payload)
                gpas = [self.view.gpa(uva) for uva in (desc, avail, used)]
                self._ring = (gpas[0], gpas[1], gpas[2])
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                if message.request in self._fds:
                    os.close(self._fds[message.request])
                self._fds[message.request] = message.fds[0]
        return None

    def _serve(self) -> None:
        _, avail, used = self._ring
        (idx,) = struct.unpack("<H", self.view.read(avail + 2, 2))
        while self._next != idx:
            slot = self._next % self._size
            (head,) = struct.unpack("<H", self.view.read(avail + 4 + 2 * slot, 2))
            written = self._try(self._chain(self._ring[0], head))
            self.view.write(used + 4 + 8 * slot, struct.pack("<II", head, written))
            self._next = self._next + 1 & 0xFFFF
            self.view.write(used + 2, struct.pack("<H", self._next))
        os.eventfd_write(self._fds[Request.SET_VRING_CALL], 1)

    def _chain(self, table: int, index: int) -> list[Piece]:
        pieces: list[Piece] = []
        while len(pieces) < 1 << 10:
            gpa, length, flags, after = DESC.unpack(self.view.read(table + 16 * index, 16))
            if flags & vr.DESC_F_INDIRECT:
                return pieces + self._chain(gpa, 0)
            pieces.append(Piece(gpa, length, bool(flags & vr.DESC_F_WRITE)))
            if not flags & vr.DESC_F_NEXT:
                return pieces
            index = after
        raise FaultError

    def _try(self, chain: list[Piece]) -> int:
        if not chain or not chain[-1].writable:
            raise FaultError  # it looks at a ring that is no more
        try:
            return self._request(chain)
        except FaultError:
            self.view.write(chain[-1].gpa, bytes([Status.IOERR]))
            return 1

    def _request(self, chain: list[Piece]) -> int:
        for piece in chain:
            if not piece.writable:
                self.view.read(piece.gpa, piece.length)
        self.misdeed(self.view, chain)
        writable = [piece for piece in chain if piece.writable]
        for piece in writable[:-1]:
            self.view.write(piece.gpa, bytes([CONTENT]) * piece.length)
        self.view.write(writable[-1].gpa, self.status)
        return sum(p.length for p in writable) if self.claim is None else self.claim


@contextlib.contextmanager
def rogue(
    misdeed: Misdeed,
    claim: int | None = None,
    *,
    status: bytes = b"\0",
    map_flags: int = mmap.MAP_SHARED,
) -> Iterator[Rogue]:
    """Run the back-end until the ``with`` block ends."""
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with running(
        Rogue(front, misdeed, claim, status, map_flags=map_flags), Connection(back, 10)
    ) as backend:
        yield backend


@contextlib.contextmanager
def running(backend: Rogue, back: Connection) -> Iterator[Rogue]:
    """Run *backend* at its end of the pair until the ``with`` block ends."""
    thread = threading.Thread(target=backend.run, args=(back,))
    thread.start()
    try:
        yield backend
    finally:
        backend.front.close()
        thread.join()
