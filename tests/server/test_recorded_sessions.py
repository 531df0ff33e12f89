"""What real QEMUs said, said again to the server, with real memory behind it."""

import os
import socket
import struct
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from recorded import TRACES, Recorded, Session, encode, sessions
from server_kit.left import mappings, open_fds
from server_kit.wire import Wire, wired

from vhostblk.disk.memory import Memory
from vhostblk.spec.vhost_user import Request
from vhostblk.spec.virtio_ring import F_RING_PACKED

LOGS = sorted(TRACES.glob("*.log"))
MISSING = pytest.param(
    TRACES,
    marks=pytest.mark.skip("the recordings (../shared/traces, or VHOSTBLK_TRACES) are not here"),
)
AREA = struct.Struct("=QQHHI")
OWN_REPLIES = {
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
    Request.GET_MAX_MEM_SLOTS,
    Request.GET_CONFIG,
    Request.GET_VRING_BASE,
    Request.GET_STATUS,
    Request.GET_INFLIGHT_FD,
}
OURS = {
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
    Request.GET_MAX_MEM_SLOTS,
    Request.GET_CONFIG,
    Request.GET_INFLIGHT_FD,
    Request.SET_LOG_BASE,
}
"""Replies whose contents are each back-end's own."""


class Replay:
    """
    A front-end that says again what one has said.

    Args:
        wire: To the device.
        session: What was said, and what was answered then.
        stack: Closes what is kept.
    """

    def __init__(self, wire: Wire, session: Session, stack: ExitStack) -> None:
        self.wire = wire
        self.requests = session.requests
        self.replies = deque(session.replies)
        self.log_shmfd = True
        self.kicks = 0
        self.packed = False
        self.region: tuple[bytes, int] | None = None
        self.channel, theirs = socket.socketpair()
        self._theirs = theirs.detach()
        stack.callback(self.channel.close)
        stack.callback(self._close)

    def _close(self) -> None:
        if self.region is not None:
            os.close(self.region[1])
        with suppress(OSError):
            os.close(self._theirs)

    async def run(self) -> None:
        for recorded in self.requests:
            await self._say(recorded)

    async def _say(self, recorded: Recorded) -> None:
        expected = self._expected(recorded)
        if recorded.request is Request.GET_VRING_BASE and expected is not None:
            ring = self.wire.attachment.rings[recorded.numbers()["index"]]
            if ring.running:
                self.wire.queue_of(ring).next = expected.numbers()["num"]
        if recorded.request is Request.GET_INFLIGHT_FD:
            await self._get_inflight(recorded)
            return
        data, fds = self._bytes(recorded)
        socket.send_fds(self.wire.sock, [data], fds)
        for fd in fds:
            os.close(fd)
        if recorded.need_reply or recorded.request in OWN_REPLIES or self._is_log(recorded):
            number, payload = await self.wire.reply()
            assert number == recorded.request
            self._compare(recorded, expected, payload)

    def _is_log(self, recorded: Recorded) -> bool:
        return recorded.request is Request.SET_LOG_BASE and self.log_shmfd

    def _expected(self, recorded: Recorded) -> Recorded | None:
        """Return what was answered; the log may have ended before."""
        if self.replies and self.replies[0].request is recorded.request:
            return self.replies.popleft()
        return None

    def _compare(self, recorded: Recorded, expected: Recorded | None, payload: bytes) -> None:
        if expected is not None and recorded.request is not Request.SET_LOG_BASE:
            assert len(payload) == expected.size, recorded
        if recorded.need_reply or recorded.request is Request.SET_LOG_BASE:
            assert payload == bytes(8), recorded
        elif expected is not None and recorded.request not in OURS:
            numbers = expected.numbers()
            seen = int.from_bytes(payload[-4:], "little") if "num" in numbers else payload[0]
            assert seen == numbers.get("num", numbers.get("u64")), recorded

    async def _get_inflight(self, recorded: Recorded) -> None:
        if self.region is not None:
            os.close(self.region[1])
        numbers = recorded.numbers()
        asked = AREA.pack(0, 0, numbers["num_queues"], numbers["queue_size"], 0)
        answer, (fd,) = await self.wire.ask_for_fds(recorded.request, asked)
        assert AREA.unpack(answer)[2:4] == (numbers["num_queues"], numbers["queue_size"])
        self.region = answer, fd

    def _bytes(self, recorded: Recorded) -> tuple[bytes, list[int]]:
        match recorded.request:
            case Request.SET_FEATURES:
                self.packed = bool(recorded.value() & F_RING_PACKED)
                recorded = self._masked(recorded, self.wire.device.features)
            case Request.SET_PROTOCOL_FEATURES:
                recorded = self._masked(recorded, 0x1B22B)
                self.log_shmfd = bool(recorded.value() & 2)
            case Request.SET_INFLIGHT_FD if self.region is not None:
                answer, fd = self.region
                return encode(recorded)[:12] + answer, [os.dup(fd)]
            case Request.SET_VRING_KICK:
                self.kicks += 1
        return encode(recorded), [self._fd(recorded, at) for at in range(recorded.fds)]

    @staticmethod
    def _masked(recorded: Recorded, ours: int) -> Recorded:
        """Ack of what another back-end offered only what we offer."""
        return replace(recorded, text=hex(recorded.value() & ours))

    def _fd(self, recorded: Recorded, at: int) -> int:
        payload = encode(recorded)[12:]
        match recorded.request:
            case Request.ADD_MEM_REG | Request.REM_MEM_REG:
                _, size, _, offset = struct.unpack_from("=QQQQ", payload, 8)
            case Request.SET_MEM_TABLE:
                _, size, _, offset = struct.unpack_from("=QQQQ", payload, 8 + 32 * at)
            case Request.SET_LOG_BASE | Request.SET_INFLIGHT_FD:
                size, offset = struct.unpack_from("=QQ", payload)
            case Request.SET_BACKEND_REQ_FD:
                return os.dup(self._theirs)
            case _:
                return os.eventfd(0)
        fd = os.memfd_create("guest")
        os.ftruncate(fd, size + offset)
        return fd


@pytest.fixture(params=[*LOGS] if LOGS else [MISSING], ids=lambda path: path.stem)
def log(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_what_qemu_said_gets_the_answers_it_needs(log: Path) -> None:
    """
    Each session, to a device of its own: every ack is 0, and every reply of the size QEMU checks.

    Bases and status are what was answered then, each kick starts a ring in the format the driver
    acked, and nothing is left of it.
    """

    async def say(session: Session) -> None:
        before = open_fds()
        with ExitStack() as stack:
            async with wired(disk=Memory(256 << 20), num_queues=4, drain_seconds=2.0) as wire:
                replay = Replay(wire, session, stack)
                await replay.run()
                await wire.done()
                rings = wire.attachment.rings
                assert sum(ring.starts for ring in rings) == replay.kicks
                assert all(ring.place.packed == replay.packed for ring in rings if ring.running)
        assert mappings() == 0
        assert open_fds() <= before

    for session in sessions(log):
        uvloop.run(say(session))


@pytest.mark.parametrize("log", [log for log in LOGS if "reconnect" in log.stem] or [MISSING])
def test_a_session_after_a_crash_is_served_write_through(log: Path) -> None:
    """A session that begins with a region nobody asked for is one of a driver with a past."""

    async def say(session: Session) -> bool:
        names = [message.request for message in session.requests]
        resumed = Request.SET_INFLIGHT_FD in names and Request.GET_INFLIGHT_FD not in names
        with ExitStack() as stack:
            async with wired(num_queues=4, drain_seconds=2.0) as wire:
                await Replay(wire, session, stack).run()
                await wire.done()
                assert wire.device.config.writeback == (not resumed)
        return resumed

    found = sessions(log)
    first, *others = (uvloop.run(say(session)) for session in found)
    assert not first
    # qsd has no such region, and the log of the guest behind an IOMMU ends before its crash.
    assert any(others) == ("stub" in log.stem and "intel" not in log.stem)
