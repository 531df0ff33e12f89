"""
The negative control for IOMMUs: a back-end with an IOTLB that remembers or heeds what it is told.

A page at a time, and nothing but what the standard says; what it leaves out is the test's choice.
"""

import contextlib
import mmap
import os
import select
import socket
from collections.abc import Iterator
from typing import Literal

from guest_peers.rogue import FEATURES, PROTOCOL, FaultError, HostView, Rogue, running
from vhostblk.guest import wire
from vhostblk.guest.connection import Connection
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import BackendRequest, IotlbType, ProtocolFeature, Request

Fault = Literal["deaf", "no wrap", "restart", "rights", "late"]
"""Heeds no INVALIDATE; or none that ends at 2^64; keeps everything over a restart; heeds no rights;
heeds INVALIDATE of the first page only."""
PAGE = 4096
WRITE, READ = 2, 1


class IotlbView:
    """
    Guest memory through an IOTLB.

    Args:
        main: The back-end's end of the main socket.
        faults: What it does wrong.
    """

    def __init__(self, main: Connection, faults: frozenset[Fault]) -> None:
        self.backend: Rogue | None = None
        self._main = main
        self._faults = faults
        self._host = HostView()
        self._channel: Connection | None = None
        self._pages: dict[int, tuple[int, int]] = {}
        self.misses = 0

    @property
    def regions(self) -> list[tuple[int, int, int, mmap.mmap]]:
        return self._host.regions

    def add(self, gpa: int, size: int, uva: int, view: mmap.mmap) -> None:
        self._host.add(gpa, size, uva, view)

    def gpa(self, uva: int) -> int:
        """Return *uva*: ring addresses are IOVAs."""
        return uva

    def read(self, gpa: int, length: int) -> bytes:
        return b"".join(
            self._host.read(at, here) for at, here in self._pieces(gpa, length, need=READ)
        )

    def write(self, gpa: int, data: bytes) -> None:
        done = 0
        for at, here in list(self._pieces(gpa, len(data), need=WRITE)):
            self._host.write(at, data[done : done + here])
            done += here

    def hear(self, message: wire.Message) -> bool:
        match message.request:
            case Request.SET_BACKEND_REQ_FD:
                sock = socket.socket(fileno=os.dup(message.fds[0]))
                os.close(message.fds[0])
                self._channel = Connection(sock, 10)
            case Request.SET_FEATURES:
                if "restart" not in self._faults:
                    self._pages.clear()
            case Request.IOTLB_MSG:
                self._learn(wire.Iotlb.parse(message.payload))
            case _:
                return False
        return True

    def close(self) -> None:
        self._host.close()
        if self._channel is not None:
            self._channel.close()

    def _learn(self, told: wire.Iotlb) -> None:
        if told.kind == IotlbType.UPDATE:
            for at in range(0, told.size, PAGE):
                self._pages[told.iova + at] = told.uaddr + at, told.perm
        elif "deaf" not in self._faults:
            size = PAGE if "late" in self._faults else told.size
            end = told.iova + size
            if "no wrap" in self._faults:
                end &= (1 << 64) - 1
            for page in [page for page in self._pages if told.iova <= page < end]:
                del self._pages[page]

    def _pieces(self, iova: int, length: int, *, need: int) -> Iterator[tuple[int, int]]:
        end = iova + length
        while iova < end:
            here = min(end, iova - iova % PAGE + PAGE) - iova
            uva = self._page(iova - iova % PAGE, need)
            yield self._host.gpa(uva) + iova % PAGE, here
            iova += here

    def _page(self, page: int, need: int) -> int:
        if page not in self._pages:
            self._ask(page, need)
        uva, perm = self._pages[page]
        if not perm & need and "rights" not in self._faults:
            raise FaultError
        return uva

    def _ask(self, page: int, need: int) -> None:
        channel = self._channel
        assert channel is not None
        assert self.backend is not None
        self.misses += 1
        miss = wire.Iotlb(page, PAGE, 0, need, IotlbType.MISS)
        channel.send(wire.message(BackendRequest.IOTLB_MSG, miss.pack(), need_reply=True))
        told = None
        while told is None or page not in self._pages:
            if told:
                raise FaultError
            fds = [self._main.fileno(), channel.fileno()]
            ready = select.select(fds if told is None else fds[:1], [], [], 10)[0]
            if fds[0] in ready:
                self.backend.message(self._main)
            if fds[1] in ready:
                told = wire.parse_u64(channel.receive("the answer to a MISS").payload)


@contextlib.contextmanager
def translating(*faults: Fault) -> Iterator[Rogue]:
    """Run the back-end until the ``with`` block ends."""
    front, back = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    main = Connection(back, 10)
    view = IotlbView(main, frozenset(faults))
    offered = FEATURES | vr.F_ACCESS_PLATFORM
    protocol = PROTOCOL | ProtocolFeature.BACKEND_REQ
    view.backend = Rogue(
        front, lambda _view, _chain: None, view=view, features=offered, protocol=protocol
    )
    with running(view.backend, main) as backend:
        yield backend
