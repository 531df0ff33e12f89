"""
A relay between QEMU and a back-end that follows the rings of a real guest, by itself.

It reads the front-end's messages as they pass (with formats of its own, from the standard), maps
the guest's memory, and from then on knows at any moment which chains the guest has made available
and the device has not given back: what a back-end may touch just now.
"""

import mmap
import os
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from vhostblk.guest.dma import pages_of
from vhostblk.guest.touches import Touch
from vhostblk.spec.vhost_user import Request
from vhostblk.spec.virtio_ring import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE

_HEADER = struct.Struct("<III")  # request, flags, size
_REGION = struct.Struct("<4Q")  # GPA, size, UVA, offset
_STATE = struct.Struct("<II")  # index, number
_ADDR = struct.Struct("<II4Q")  # index, flags, desc, used, avail, log
_DESC = struct.Struct("<QIHH")
_U16 = 0xFFFF


@dataclass(frozen=True, slots=True)
class Ram:
    """
    A region of the guest's memory.

    Args:
        gpa: Its first address.
        size: Bytes.
        uva: The same address in the front-end.
        offset: Where it begins in the memfd.
        view: Its bytes.
    """

    gpa: int
    size: int
    uva: int
    offset: int
    view: mmap.mmap


@dataclass(slots=True)
class Rings:
    """
    A virtqueue, as its driver sees it.

    Args:
        size: Descriptors.
        base: Index at which it goes on.
        desc: GPA of the descriptor table.
        used: GPA of the used ring.
        avail: GPA of the avail ring.
    """

    size: int = 0
    base: int = 0
    desc: int = 0
    used: int = 0
    avail: int = 0
    seen_avail: int = 0
    seen_used: int = 0
    in_flight: Counter[int] = field(default_factory=Counter)
    """By head: the same may be posted again before we look."""
    missed: int = 0
    """How often more was made available at once than we could follow."""

    def place(self, desc: int, used: int, avail: int) -> None:
        """Begin at *base*."""
        self.desc, self.used, self.avail = desc, used, avail
        self.seen_avail = self.seen_used = self.base
        self.in_flight = Counter()

    @property
    def pages(self) -> Iterator[int]:
        """Yield the pages of all three parts."""
        yield from pages_of(self.desc, 16 * self.size)
        yield from pages_of(self.avail, 6 + 2 * self.size)
        yield from self.used_pages

    @property
    def used_pages(self) -> Iterator[int]:
        """Yield the pages that a device writes."""
        yield from pages_of(self.used, 6 + 8 * self.size)


class Relay:
    """
    Pass everything on, and follow.  Use it in a ``with`` statement.

    Args:
        path: Where QEMU connects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backend = Path()
        """Where the back-end listens, by the time QEMU connects."""
        self._lock = threading.Lock()
        self._ram: list[Ram] = []
        self._rings: dict[int, Rings] = {}
        self._stopping: set[int] = set()
        self.ring_pages: set[int] = set()
        """Of all rings there ever were."""
        self._end = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=self._run, name="relay")

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._listener.close()
        for ram in self._ram:
            ram.view.close()

    # ---- what may be touched ------------------------------------------------------------------

    def allows(self, touch: Touch, _memory: int) -> bool:
        """Say whether the device may touch that page now, and in that way."""
        with self._lock:
            self._follow()
            page = self.gpa(touch)
            for ring in self._rings.values():
                if page in (ring.used_pages if touch.write else ring.pages):
                    return True
            return page in self._buffers(write=touch.write)

    def glance(self) -> None:
        """Follow the rings before they have gone round."""
        with self._lock:
            self._follow()

    @property
    def missed(self) -> int:
        """Return how often we could not follow."""
        return sum(one.missed for one in self._rings.values())

    def gpa(self, touch: Touch) -> int:
        """Return the address of the page in the guest."""
        ram = next(r for r in self._ram if r.offset <= touch.offset < r.offset + r.size)
        return touch.offset - ram.offset + ram.gpa

    def _buffers(self, *, write: bool) -> set[int]:
        pages: set[int] = set()
        for ring in self._rings.values():
            for head in +ring.in_flight:
                for gpa, length, writable in self._chain(ring.desc, head, ring.size):
                    if writable or not write:
                        pages.update(pages_of(gpa, length))
        return pages

    def _chain(self, table: int, index: int, size: int) -> Iterator[tuple[int, int, bool]]:
        for _ in range(size):
            gpa, length, flags, after = _DESC.unpack(self._read(table + 16 * index, 16))
            yield gpa, length, bool(flags & DESC_F_WRITE)
            if flags & DESC_F_INDIRECT:
                yield from self._chain(gpa, 0, length // 16)
            if not flags & DESC_F_NEXT:
                return
            index = after

    def _follow(self) -> None:
        for ring in self._rings.values():
            if ring.desc:
                self._follow_one(ring)

    def _follow_one(self, ring: Rings) -> None:
        avail, used = self._u16(ring.avail + 2), self._u16(ring.used + 2)
        if (avail - ring.seen_avail) & _U16 > ring.size:
            ring.missed += 1
            ring.seen_avail = (avail - ring.size) & _U16
        while ring.seen_avail != avail:
            ring.in_flight[self._u16(ring.avail + 4 + 2 * (ring.seen_avail % ring.size))] += 1
            ring.seen_avail = ring.seen_avail + 1 & _U16
        while ring.seen_used != used:
            at = ring.used + 4 + 8 * (ring.seen_used % ring.size)
            ring.in_flight[self._u16(at)] -= 1
            ring.seen_used = ring.seen_used + 1 & _U16

    def _u16(self, gpa: int) -> int:
        return int.from_bytes(self._read(gpa, 2), "little")

    def _read(self, gpa: int, length: int) -> bytes:
        ram = next(r for r in self._ram if r.gpa <= gpa < r.gpa + r.size)
        return ram.view[gpa - ram.gpa : gpa - ram.gpa + length]

    # ---- what passes ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not select.select([self._listener], [], [], 0.05)[0]:
            if self._end.is_set():  # no front-end came
                return
        front, _ = self._listener.accept()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as back:
            back.connect(str(self.backend))
            with front:
                while not self._end.is_set():
                    ready = select.select([front, back], [], [], 0.05)[0]
                    if front in ready and not self._pass_on(front, back):
                        return
                    if back in ready and not _answer(back, front):
                        return

    def _pass_on(self, front: socket.socket, back: socket.socket) -> bool:
        head, fds, _, _ = socket.recv_fds(front, _HEADER.size, 16)
        if not head:
            return False
        assert len(head) == _HEADER.size
        request, _, size = _HEADER.unpack(head)
        payload = b""
        while len(payload) < size:
            payload += front.recv(size - len(payload))
        with self._lock:
            self._see(request, payload, fds)
        socket.send_fds(back, [head + payload], fds)
        for fd in fds:
            os.close(fd)
        return True

    def _see(self, request: int, payload: bytes, fds: list[int]) -> None:
        for index in self._stopping:  # the reply has come, or there would be no other message
            self._rings.pop(index, None)
        self._stopping.clear()
        match request:
            case Request.SET_MEM_TABLE:
                for fd, region in zip(fds, _REGION.iter_unpack(payload[8:]), strict=False):
                    self._map(fd, *region)
            case Request.ADD_MEM_REG:
                self._map(fds[0], *_REGION.unpack(payload[8:]))
            case Request.SET_VRING_NUM:
                index, number = _STATE.unpack(payload)
                self._rings.setdefault(index, Rings()).size = number
            case Request.SET_VRING_BASE:
                index, number = _STATE.unpack(payload)
                self._rings.setdefault(index, Rings()).base = number
            case Request.SET_VRING_ADDR:
                index, _, desc, used, avail, _ = _ADDR.unpack(payload)
                ring = self._rings.setdefault(index, Rings())
                ring.place(self._gpa(desc), self._gpa(used), self._gpa(avail))
                self.ring_pages.update(ring.pages)
            case Request.GET_VRING_BASE:
                self._stopping.add(_STATE.unpack(payload)[0])

    def _map(self, fd: int, gpa: int, size: int, uva: int, offset: int) -> None:
        view = mmap.mmap(fd, size, prot=mmap.PROT_READ, offset=offset)
        self._ram = [r for r in self._ram if not r.gpa <= gpa < r.gpa + r.size]
        self._ram.append(Ram(gpa, size, uva, offset, view))

    def _gpa(self, uva: int) -> int:
        ram = next(r for r in self._ram if r.uva <= uva < r.uva + r.size)
        return uva - ram.uva + ram.gpa


def _answer(back: socket.socket, front: socket.socket) -> bool:
    """Pass a reply on, with its descriptor if it has one (GET_INFLIGHT_FD); whether there was."""
    data, fds, _, _ = socket.recv_fds(back, 1 << 16, 16)
    if not data:
        return False
    socket.send_fds(front, [data], fds)
    for fd in fds:
        os.close(fd)
    return True
