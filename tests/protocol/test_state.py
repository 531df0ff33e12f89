import pytest

from vhostblk.errors import Refused
from vhostblk.protocol.messages import SetFeatures, SetOwner, SetProtocolFeatures
from vhostblk.protocol.state import (
    RING,
    ConnectionState,
    Phase,
    RingAction,
    RingEvent,
    RingState,
    step_ring,
)
from vhostblk.spec.vhost_user import ProtocolFeature, Request

EVERYTHING = ProtocolFeature((1 << 20) - 1)


def walk(*events: RingEvent) -> tuple[RingState, list[RingAction]]:
    """Return where *events* lead a fresh ring, and the actions that are not nothing."""
    state = RingState.STOPPED
    actions: list[RingAction] = []
    for event in events:
        transition = step_ring(state, event)
        state = transition.state
        if transition.action is not RingAction.NOTHING:
            actions.append(transition.action)
    return state, actions


def test_connection_begins_without_features() -> None:
    """What needs none is legal at once: QEMU's own order of the first messages."""
    state = ConnectionState()
    for request in (1, 15, 16, 17, 36, 3, 13, 14, 8, 9, 10, 11, 5, 2):
        assert state.objection(Request(request)) is None
    for request in (24, 25, 31, 32, 34, 37, 38, 39, 40, 21):
        assert state.objection(Request(request)) is not None


def test_connection_state_is_changed_by_two_messages_only() -> None:
    """SET_PROTOCOL_FEATURES and SET_FEATURES; all else leaves it as it is."""
    state = ConnectionState()
    assert state.after(SetOwner()) == state
    agreed = state.after(SetProtocolFeatures(features=EVERYTHING))
    assert agreed == ConnectionState(Phase.NEGOTIATING, EVERYTHING)
    done = agreed.after(SetFeatures(features=0))
    assert done == ConnectionState(Phase.NEGOTIATED, EVERYTHING)
    assert done.after(SetFeatures(features=1)) == done
    assert all(done.objection(request) is None for request in Request)


def test_ring_table_is_complete() -> None:
    """Every state knows every event, but for the two that a running ring refuses."""
    for state, row in RING.items():
        missing = set(RingEvent) - set(row)
        running = state in (RingState.STARTED, RingState.PAUSED)
        assert missing == ({RingEvent.SETUP} if running else set())
    assert set(RING) == set(RingState)


def test_ring_starts_when_enabled_after_its_kick_descriptor() -> None:
    """QEMU's order: KICK, then ENABLE; kicks that came between are found in the ring."""
    events = (RingEvent.SETUP, RingEvent.ADDR, RingEvent.KICK)
    assert walk(*events) == (RingState.ARMED, [])
    assert walk(*events, RingEvent.ENABLE) == (RingState.STARTED, [RingAction.START])


def test_ring_starts_at_its_kick_descriptor_when_enabled() -> None:
    """Without bit 30 rings are enabled from the start."""
    assert walk(RingEvent.ENABLE, RingEvent.SETUP, RingEvent.ADDR, RingEvent.KICK) == (
        RingState.STARTED,
        [RingAction.START],
    )


def test_ring_that_was_never_set_up_may_be_enabled() -> None:
    """QEMU enables all rings although the guest uses one: it stays idle."""
    assert walk(RingEvent.ENABLE, RingEvent.DISABLE, RingEvent.STOP) == (RingState.STOPPED, [])


def test_disabled_is_not_stopped() -> None:
    """ENABLE 0 pauses: the ring resumes where it was."""
    start = (RingEvent.KICK, RingEvent.ENABLE)
    state, actions = walk(*start, RingEvent.DISABLE, RingEvent.DISABLE, RingEvent.ENABLE)
    assert state is RingState.STARTED
    assert actions == [RingAction.START, RingAction.PAUSE, RingAction.RESUME]


def test_ring_stops_at_get_vring_base_and_starts_again() -> None:
    """QMP stop and cont: the second time as the first."""
    start = (RingEvent.SETUP, RingEvent.ADDR, RingEvent.KICK, RingEvent.ENABLE)
    stop = (RingEvent.DISABLE, RingEvent.STOP)
    state, actions = walk(*start, *stop, RingEvent.STOP, *start)
    assert state is RingState.STARTED
    assert actions == [RingAction.START, RingAction.PAUSE, RingAction.STOP, RingAction.START]


def test_ring_stays_enabled_when_it_is_only_stopped() -> None:
    """Started and enabled are independent: GET_VRING_BASE alone leaves it enabled."""
    state, actions = walk(RingEvent.ENABLE, RingEvent.KICK, RingEvent.STOP, RingEvent.KICK)
    assert state is RingState.STARTED
    assert actions == [RingAction.START, RingAction.STOP, RingAction.START]


def test_running_ring_takes_new_descriptors_and_log_flag() -> None:
    """Migration sends SET_VRING_ADDR to rings that run; a kick descriptor may be replaced."""
    for pause in ((), (RingEvent.DISABLE,)):
        start = (RingEvent.KICK, RingEvent.ENABLE, *pause)
        before, _ = walk(*start)
        for event in (RingEvent.ADDR, RingEvent.KICK):
            state, actions = walk(*start, event)
            assert state is before
            assert actions[-1] is RingAction.UPDATE


@pytest.mark.parametrize("pause", [(), (RingEvent.DISABLE,)])
def test_running_ring_refuses_another_size_or_base(pause: tuple[RingEvent, ...]) -> None:
    """Neither can change under a ring that has started."""
    with pytest.raises(Refused, match="SET_VRING_NUM"):
        walk(RingEvent.KICK, RingEvent.ENABLE, *pause, RingEvent.SETUP)


@pytest.mark.parametrize("state", list(RingState))
def test_reset_stops_any_ring(state: RingState) -> None:
    """RESET_DEVICE comes several times in a row, to rings in any state."""
    transition = step_ring(state, RingEvent.RESET)
    assert transition.state is RingState.STOPPED
    armed = state not in (RingState.STOPPED, RingState.STOPPED_ENABLED)
    assert (transition.action is RingAction.STOP) == armed
