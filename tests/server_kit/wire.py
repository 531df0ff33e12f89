"""A front-end's end of a socketpair, and a device behind the other, without a data plane."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import pytest
from frontend_bytes import NEED_REPLY, VERSION, message, u64

from server_kit.engine import FakeEngine, FakeQueue
from vhostblk.disk.memory import Memory
from vhostblk.server.attachment import Attachment
from vhostblk.server.device import open_device
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.ring import Ring
from vhostblk.server.session import Session
from vhostblk.server.transport import Transport

ALL_PROTOCOL_FEATURES = 0x1B22B
"""MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE,
CONFIGURE_MEM_SLOTS, STATUS."""
LINUX = 0x170001E46
"""What a Linux driver acks of a plain device: bit 30 is the front-end's."""
UVA = 0x7F0000000000
REGION_SIZE = 0x100000
START = ["space", "ring", "base", "features", "blk", "enabled", "run"]
"""What a queue is told when its ring starts."""
PATIENCE = 10.0
"""Seconds after which a test gives up."""
QUIET = 0.02
"""Seconds in which nothing must happen."""


class Wire:
    """
    A front-end that sends what it is told.

    Args:
        sock: Its end.
        engine: What is behind the other.
        attachment: What it has of the device.
        session: Its side of the connection.
    """

    def __init__(
        self,
        sock: socket.socket,
        engine: FakeEngine,
        attachment: Attachment,
        session: asyncio.Task[None],
    ) -> None:
        sock.settimeout(0)
        self.sock = sock
        self.engine = engine
        self.device = attachment.device
        self.attachment = attachment
        self.session = session

    @property
    def queue(self) -> FakeQueue:
        """Return the queue that was made last."""
        return self.engine.queues[-1]

    @staticmethod
    def queue_of(ring: Ring) -> FakeQueue:
        """Return the queue behind a ring."""
        queue = ring.queue
        assert isinstance(queue, FakeQueue)
        return queue

    def tell(
        self, number: int, payload: bytes = b"", fds: Sequence[int] = (), *, ack: bool = False
    ) -> None:
        """Send a message; *fds* are closed here."""
        flags = VERSION | (NEED_REPLY if ack else 0)
        socket.send_fds(self.sock, [message(number, payload, flags)], list(fds))
        for fd in fds:
            os.close(fd)

    async def reply(self) -> tuple[int, bytes]:
        """Return number and payload of the next reply."""
        number, flags, size = struct.unpack("=III", await self._exactly(12))
        assert flags == 5
        return number, await self._exactly(size)

    async def ask(self, number: int, payload: bytes = b"") -> bytes:
        """Send a message that has a reply of its own; return the payload of that."""
        self.tell(number, payload)
        answered, answer = await self.reply()
        assert answered == number
        return answer

    async def ask_for_fds(self, number: int, payload: bytes = b"") -> tuple[bytes, list[int]]:
        """Ask, and return the descriptors that came with the answer, too; they are the caller's."""
        self.tell(number, payload)
        loop = asyncio.get_running_loop()
        came = asyncio.Event()
        loop.add_reader(self.sock, came.set)
        try:
            await asyncio.wait_for(came.wait(), PATIENCE)
        finally:
            loop.remove_reader(self.sock)
        head, fds, _, _ = socket.recv_fds(self.sock, 12, 4)
        answered, flags, size = struct.unpack("=III", head)
        assert (answered, flags) == (number, 5)
        return await self._exactly(size), fds

    async def acked(self, number: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Send a message and return the code of its ack."""
        self.tell(number, payload, fds, ack=True)
        answered, answer = await self.reply()
        assert answered == number
        return int.from_bytes(answer, "little")

    async def done(self) -> None:
        """Return when everything sent so far was handled."""
        await self.ask(1)

    async def gone(self) -> bool:
        """Tell whether the device hangs up."""
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.sock_recv(self.sock, 1), PATIENCE) == b""
        except ConnectionError:
            return True

    async def nothing_comes(self) -> None:
        """Make sure that no reply comes for a while."""
        await asyncio.sleep(QUIET)
        with pytest.raises(BlockingIOError):
            self.sock.recv(1)

    async def closed(self) -> None:
        """Return when the device's side has cleaned up."""
        await asyncio.wait_for(asyncio.shield(self.session), PATIENCE)

    async def _exactly(self, size: int) -> bytes:
        data = b""
        loop = asyncio.get_running_loop()
        while len(data) < size:
            part = await asyncio.wait_for(loop.sock_recv(self.sock, size - len(data)), PATIENCE)
            assert part, "the device hung up"
            data += part
        return data

    async def negotiate(self, features: int = LINUX) -> None:
        """Go as far as SET_FEATURES, with every protocol feature."""
        self.tell(16, u64(ALL_PROTOCOL_FEATURES))
        self.tell(2, u64(features))
        await self.done()

    async def plug(self, gpa: int = 0, size: int = REGION_SIZE) -> int:
        """Add a region; return the code of its ack."""
        with memfd(size) as fd:
            return await self.acked(37, region(gpa, size), [os.dup(fd)])

    async def set_up(self, index: int = 0, num: int = 8, base: int = 0) -> None:
        """Send NUM, BASE, ADDR and KICK."""
        self.tell(8, struct.pack("=II", index, num))
        self.tell(10, struct.pack("=II", index, base))
        self.tell(9, addresses(index))
        assert await self.acked(12, u64(index), [os.eventfd(0)]) == 0

    async def start(self, index: int = 0, num: int = 8, base: int = 0) -> None:
        """Negotiate, add memory, set a ring up and enable it."""
        await self.negotiate()
        await self.plug()
        await self.set_up(index, num, base)
        assert await self.acked(18, struct.pack("=II", index, 1)) == 0


@asynccontextmanager
async def wired(
    engine: FakeEngine | None = None, *, disk: object = None, **options: object
) -> AsyncIterator[Wire]:
    """
    Attach a front-end to a device; afterwards nothing of it may be left.

    Args:
        engine: The data plane.
        disk: What is served; None: a little memory.
        options: Of the device.
    """
    engine = engine or FakeEngine()
    chosen = DeviceOptions(**{"num_queues": 2, "drain_seconds": 2.0, **options})  # type: ignore[arg-type]
    device = await open_device(disk or Memory(1 << 20), engine, chosen)
    ours, theirs = socket.socketpair()
    attachment = Attachment(device)
    session = Session(Transport(theirs), attachment, device.log)
    task = asyncio.create_task(session.run())
    try:
        yield Wire(ours, engine, attachment, task)
    finally:
        ours.close()
        await asyncio.wait_for(task, PATIENCE)
        await device.close()
        assert all(queue.closed for queue in engine.queues)


@contextmanager
def memfd(size: int) -> Iterator[int]:
    """Make guest memory."""
    fd = os.memfd_create("guest")
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def region(gpa: int = 0, size: int = REGION_SIZE) -> bytes:
    """Return the payload of ADD_MEM_REG and REM_MEM_REG."""
    return bytes(8) + struct.pack("=QQQQ", gpa, size, UVA + gpa, 0)


def addresses(index: int = 0, desc: int = UVA) -> bytes:
    """Return the payload of SET_VRING_ADDR: a ring of up to 128 descriptors at *desc*."""
    return struct.pack("=IIQQQQ", index, 0, desc, desc + 0x2000, desc + 0x1000, 0)
