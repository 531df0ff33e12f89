"""A front-end with an IOMMU, message by message: what it is asked, and what it answers."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from frontend_bytes import message, u64, vring

from server_kit.engine import FakeQueue
from server_kit.wire import ALL_PROTOCOL_FEATURES, LINUX, PATIENCE, UVA, Wire, addresses, wired

PAGE = 4096
RING = 0xFFFF_D000
"""IOVA of a ring: its three parts are in three pages."""
PARTS = (RING, RING + PAGE, RING + 2 * PAGE)
BUFFER = 0xFFF0_0000
UPDATE, INVALIDATE, BATCH_BEGIN = 2, 3, 5
IOTLB = struct.Struct("=QQQBB6x")
PLATFORM = 1 << 33


class Iommu(Wire):
    """A front-end with an IOMMU, and its end of the back-end's channel."""

    channel: socket.socket

    async def missed(self) -> tuple[int, int]:
        """Return IOVA and permission of the next MISS."""
        loop = asyncio.get_running_loop()
        data = b""
        while len(data) < 12 + IOTLB.size:
            part = loop.sock_recv(self.channel, 12 + IOTLB.size - len(data))
            data += await asyncio.wait_for(part, PATIENCE)
        assert struct.unpack("=III", data[:12]) == (1, 1 | 8, IOTLB.size)
        iova, _, _, perm, kind = IOTLB.unpack(data[12:])
        assert kind == 1
        return iova, perm

    def answer(self, code: int = 0) -> None:
        """Ack a MISS."""
        self.channel.send(message(1, u64(code), 5))

    async def nothing_is_asked(self) -> None:
        await asyncio.sleep(0.02)
        with pytest.raises(BlockingIOError):
            self.channel.recv(1)

    async def update(self, iova: int, uaddr: int = UVA, size: int = PAGE, perm: int = 3) -> int:
        return await self.acked(22, IOTLB.pack(iova, size, uaddr, perm, UPDATE))

    async def invalidate(self, iova: int, size: int = PAGE) -> int:
        return await self.acked(22, IOTLB.pack(iova, size, 0, 0, INVALIDATE))

    async def begin(
        self, *, features: int = LINUX | PLATFORM, ring: int = RING, base: int = 5
    ) -> None:
        """Go as far as SET_VRING_ENABLE, which is answered at once."""
        self.tell(16, u64(ALL_PROTOCOL_FEATURES))
        theirs = socket.socketpair()
        self.channel = theirs[0]
        self.channel.settimeout(0)
        assert await self.acked(21, fds=[theirs[1].detach()]) == 0
        self.tell(2, u64(features))
        await self.plug()
        self.tell(8, vring(0, 8))
        self.tell(10, vring(0, base))
        self.tell(9, addresses(0, ring))
        assert await self.acked(12, u64(0), [os.eventfd(0)]) == 0
        assert await self.acked(18, vring(0, 1)) == 0

    async def up(self) -> FakeQueue:
        """Begin, and tell where the ring is."""
        await self.begin()
        for page, iova in enumerate(PARTS):
            await self.update(iova, UVA + page * PAGE)
        await self.until(lambda: self.queue.running)
        while self.pending():
            await self.missed()
            self.answer()
        self.queue.calls.clear()
        return self.queue

    def pending(self) -> bool:
        try:
            return bool(self.channel.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0.002)
        raise AssertionError("it never came true")


@asynccontextmanager
async def iommu(**options: object) -> AsyncIterator[Iommu]:
    """Attach a front-end with an IOMMU."""
    async with wired(**options) as wire:  # type: ignore[arg-type]
        made = Iommu(wire.sock, wire.engine, wire.attachment, wire.session)
        try:
            yield made
        finally:
            made.channel.close()
