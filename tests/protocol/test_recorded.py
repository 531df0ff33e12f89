from dataclasses import dataclass, field
from pathlib import Path

import pytest
from frontend_bytes import some_fds
from recorded import TRACES, Recorded, Session, encode, sessions

from vhostblk.protocol.connection import Connection
from vhostblk.protocol.messages import (
    GetVringBase,
    Invalid,
    Message,
    ResetDevice,
    SetFeatures,
    SetStatus,
    SetVringAddr,
    SetVringBase,
    SetVringEnable,
    SetVringKick,
    SetVringNum,
    close_fds,
)
from vhostblk.protocol.replies import InflightRegion, Outcome
from vhostblk.protocol.state import RingEvent, RingState, step_ring
from vhostblk.spec.vhost_user import VHOST_USER_F_PROTOCOL_FEATURES, Request

QUEUES = 4
LOGS = sorted(TRACES.glob("*.log"))
MISSING = pytest.param(
    TRACES,
    marks=pytest.mark.skip("the recordings (../shared/traces, or VHOSTBLK_TRACES) are not here"),
)
RUNNING = (RingState.STARTED, RingState.PAUSED)


@dataclass(slots=True)
class Rings:
    """The rings of a device that does nothing but follow its table."""

    states: list[RingState] = field(default_factory=lambda: [RingState.STOPPED] * QUEUES)
    starts: int = 0
    stopped: list[RingState] = field(default_factory=list)

    def step(self, index: int, event: RingEvent) -> None:
        before = self.states[index]
        self.states[index] = step_ring(before, event).state
        if self.states[index] is RingState.STARTED and before not in RUNNING:
            self.starts += 1

    def follow(self, message: Message) -> None:
        match message:
            case SetFeatures(features=features):
                if not features & VHOST_USER_F_PROTOCOL_FEATURES:
                    self.all(RingEvent.ENABLE)
            case SetVringNum(index=index) | SetVringBase(index=index):
                self.step(index, RingEvent.SETUP)
            case SetVringAddr(index=index):
                self.step(index, RingEvent.ADDR)
            case SetVringKick(index=index):
                self.step(index, RingEvent.KICK)
            case SetVringEnable(index=index, enable=enable):
                self.step(index, RingEvent.ENABLE if enable else RingEvent.DISABLE)
            case GetVringBase(index=index):
                self.stopped.append(self.states[index])
                self.step(index, RingEvent.STOP)
            case ResetDevice() | SetStatus(status=0):
                self.all(RingEvent.RESET)
            case _:
                pass

    def all(self, event: RingEvent) -> None:
        for index in range(QUEUES):
            self.step(index, event)


def outcome_of(message: Message, answers: list[Recorded]) -> Outcome:
    """Return what the recorded back-end answered to *message*, as a handler would."""
    answer = next((answer for answer in answers if answer.request == message.request), None)
    if answer is None:
        return bytes(57) if message.request is Request.GET_CONFIG else 0
    match message.request:
        case Request.GET_CONFIG:
            return bytes(answer.size - 12)
        case Request.GET_VRING_BASE:
            return answer.numbers()["num"]
        case Request.GET_INFLIGHT_FD:
            return InflightRegion(
                **{
                    name: answer.numbers()[name]
                    for name in InflightRegion.__slots__
                    if name != "fd"
                },
                fd=99,
            )
        case Request.SET_LOG_BASE:
            return None
    return answer.value() if answer.request.name.startswith("GET_") else None


def replay(session: Session) -> tuple[Rings, list[bytes]]:
    """Send everything the front-end sent; return the rings and every reply."""
    connection, rings = Connection(queues=QUEUES), Rings()
    replies: list[bytes] = []
    for recorded in session.requests:
        data, fds = encode(recorded), some_fds(recorded.fds)
        message = connection.receive(data[:12], fds)
        if message is None:
            message = connection.receive(data[12:])
        assert message is not None, recorded
        assert not isinstance(message, Invalid), message
        assert message.request == recorded.request
        assert message.need_reply == recorded.need_reply
        rings.follow(message)
        sent, _ = connection.reply(message, outcome_of(message, session.replies[len(replies) :]))
        if sent:
            replies.append(sent)
        close_fds(message)
    return rings, replies


@pytest.fixture(params=[*LOGS] if LOGS else [MISSING], ids=lambda path: path.stem)
def log(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_recorded_session_is_understood(log: Path) -> None:
    """
    Each message of each session parses, is legal, and is answered if QEMU was answered.

    A reply has the request and the size that was seen; only SET_LOG_BASE may differ, where each
    back-end has its own.
    """
    for session in sessions(log):
        rings, replies = replay(session)
        ours = [(reply[0], len(reply) - 12) for reply in replies]
        theirs = [(reply.request, reply.size) for reply in session.replies]
        assert len(ours) >= len(theirs)
        for (number, size), (request, seen) in zip(ours, theirs, strict=False):
            assert number == request
            assert size == seen or request is Request.SET_LOG_BASE
        # The log may end before the last answer.
        assert len(ours) - len(theirs) <= 1
        # QEMU disables before it stops, and stops only what it started.
        assert all(state is RingState.PAUSED for state in rings.stopped)


def test_recorded_session_starts_its_rings(log: Path) -> None:
    """Every ring that got a kick descriptor in a session has started in it."""
    for session in sessions(log):
        rings, _ = replay(session)
        kicks = sum(message.request is Request.SET_VRING_KICK for message in session.requests)
        assert rings.starts == kicks
