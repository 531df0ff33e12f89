"""
What is legal when, and what changes then: one table for a connection, one for a ring.

Every change of either goes through its table.  The tables ask for no more order than the
front-ends keep: QEMU sends SET_OWNER after SET_PROTOCOL_FEATURES, and SET_VRING_CALL and
SET_VRING_ERR long before SET_FEATURES.
"""

from dataclasses import dataclass, replace
from enum import Enum
from errno import EBUSY

from vhostblk.errors import Refused
from vhostblk.protocol.messages import Received, SetFeatures, SetProtocolFeatures
from vhostblk.spec.vhost_user import ProtocolFeature, Request


class Phase(Enum):
    """How far a connection has come."""

    NEGOTIATING = "before SET_FEATURES"
    NEGOTIATED = "after SET_FEATURES"


# A ring runs by what SET_FEATURES acked (its format, and whether rings begin enabled).
_NEED_FEATURES = frozenset({Request.SET_VRING_KICK, Request.SET_VRING_ENABLE, Request.VRING_KICK})

CONNECTION: dict[Phase, frozenset[Request]] = {
    Phase.NEGOTIATING: frozenset(Request) - _NEED_FEATURES,
    Phase.NEGOTIATED: frozenset(Request),
}

NEXT_PHASE: dict[tuple[Phase, Request], Phase] = {
    (Phase.NEGOTIATING, Request.SET_FEATURES): Phase.NEGOTIATED,
}
"""Only what is here changes the phase, and only when it succeeded."""

NEEDS: dict[Request, ProtocolFeature] = {
    Request.SEND_RARP: ProtocolFeature.RARP,
    Request.NET_SET_MTU: ProtocolFeature.MTU,
    Request.SET_BACKEND_REQ_FD: ProtocolFeature.BACKEND_REQ,
    Request.SET_VRING_ENDIAN: ProtocolFeature.CROSS_ENDIAN,
    Request.GET_CONFIG: ProtocolFeature.CONFIG,
    Request.SET_CONFIG: ProtocolFeature.CONFIG,
    Request.CREATE_CRYPTO_SESSION: ProtocolFeature.CRYPTO_SESSION,
    Request.CLOSE_CRYPTO_SESSION: ProtocolFeature.CRYPTO_SESSION,
    Request.POSTCOPY_ADVISE: ProtocolFeature.PAGEFAULT,
    Request.POSTCOPY_LISTEN: ProtocolFeature.PAGEFAULT,
    Request.POSTCOPY_END: ProtocolFeature.PAGEFAULT,
    Request.GET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.SET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
    Request.RESET_DEVICE: ProtocolFeature.RESET_DEVICE,
    Request.VRING_KICK: ProtocolFeature.INBAND_NOTIFICATIONS,
    Request.ADD_MEM_REG: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.REM_MEM_REG: ProtocolFeature.CONFIGURE_MEM_SLOTS,
    Request.SET_STATUS: ProtocolFeature.STATUS,
    Request.GET_STATUS: ProtocolFeature.STATUS,
    Request.GET_SHARED_OBJECT: ProtocolFeature.SHARED_OBJECT,
    Request.SET_DEVICE_STATE_FD: ProtocolFeature.DEVICE_STATE,
    Request.CHECK_DEVICE_STATE: ProtocolFeature.DEVICE_STATE,
}
"""The protocol feature a message exists with; asking for a constant (GET_QUEUE_NUM) needs none."""

_NONE = ProtocolFeature(0)


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """
    What a connection has agreed on.

    Args:
        phase: How far it has come.
        protocol_features: Acked, and in force.
    """

    phase: Phase = Phase.NEGOTIATING
    protocol_features: ProtocolFeature = _NONE

    def objection(self, request: Request) -> str | None:
        """Say why *request* is not legal now; None if it is."""
        needed = NEEDS.get(request, _NONE)
        if needed not in self.protocol_features:
            return f"{request.name} without protocol feature {needed.name}"
        if request not in CONNECTION[self.phase]:
            return f"{request.name} {self.phase.value}"
        return None

    def after(self, message: Received) -> "ConnectionState":
        """Return the state once *message* has succeeded."""
        match message:
            case SetProtocolFeatures(features=features):
                return replace(self, protocol_features=features)
            case SetFeatures():
                phase = NEXT_PHASE.get((self.phase, message.request), self.phase)
                return replace(self, phase=phase)
            case _:
                return self


class RingState(Enum):
    """
    Started x enabled.

    ARMED is what the standard calls a stopped ring whose kick descriptor is being watched.  A
    ring that is enabled and has one is started at once, as requests may lie in it whose kick
    nobody will repeat.
    """

    STOPPED = "stopped, disabled"
    STOPPED_ENABLED = "stopped, enabled"
    ARMED = "armed, disabled"
    STARTED = "started, enabled"
    PAUSED = "started, disabled"


class RingEvent(Enum):
    """What happens to a ring."""

    SETUP = "SET_VRING_NUM or SET_VRING_BASE"
    ADDR = "SET_VRING_ADDR"
    KICK = "SET_VRING_KICK"
    ENABLE = "SET_VRING_ENABLE 1, or SET_FEATURES without bit 30"
    DISABLE = "SET_VRING_ENABLE 0"
    STOP = "GET_VRING_BASE"
    RESET = "RESET_DEVICE, SET_STATUS 0 or RESET_OWNER"


class RingAction(Enum):
    """What the queue behind a ring must be told."""

    NOTHING = "the numbers are only noted"
    START = "give it size, addresses, base, features and descriptors; run it enabled"
    UPDATE = "park it, give it what came, run it again"
    RESUME = "park it, enable it, run it: it looks at the ring at once"
    PAUSE = "park it, disable it, run it: it completes and takes nothing new"
    STOP = "drain it and take its kick descriptor away"


@dataclass(frozen=True, slots=True)
class Transition:
    """Where an event leads, and what to do on the way."""

    state: RingState
    action: RingAction = RingAction.NOTHING


_S, _E, _A = RingState, RingEvent, RingAction

RING: dict[RingState, dict[RingEvent, Transition]] = {
    _S.STOPPED: {
        _E.SETUP: Transition(_S.STOPPED),
        _E.ADDR: Transition(_S.STOPPED),
        _E.KICK: Transition(_S.ARMED),
        _E.ENABLE: Transition(_S.STOPPED_ENABLED),
        _E.DISABLE: Transition(_S.STOPPED),
        _E.STOP: Transition(_S.STOPPED),
        _E.RESET: Transition(_S.STOPPED),
    },
    # QEMU enables rings it never set up: they wait here, idle.
    _S.STOPPED_ENABLED: {
        _E.SETUP: Transition(_S.STOPPED_ENABLED),
        _E.ADDR: Transition(_S.STOPPED_ENABLED),
        _E.KICK: Transition(_S.STARTED, _A.START),
        _E.ENABLE: Transition(_S.STOPPED_ENABLED),
        _E.DISABLE: Transition(_S.STOPPED),
        _E.STOP: Transition(_S.STOPPED_ENABLED),
        _E.RESET: Transition(_S.STOPPED),
    },
    _S.ARMED: {
        _E.SETUP: Transition(_S.ARMED),
        _E.ADDR: Transition(_S.ARMED),
        _E.KICK: Transition(_S.ARMED),
        _E.ENABLE: Transition(_S.STARTED, _A.START),
        _E.DISABLE: Transition(_S.ARMED),
        _E.STOP: Transition(_S.STOPPED, _A.STOP),
        _E.RESET: Transition(_S.STOPPED, _A.STOP),
    },
    # Size and base of a running ring cannot change.  Its addresses come again with the log flag
    # when migration begins.
    _S.STARTED: {
        _E.ADDR: Transition(_S.STARTED, _A.UPDATE),
        _E.KICK: Transition(_S.STARTED, _A.UPDATE),
        _E.ENABLE: Transition(_S.STARTED),
        _E.DISABLE: Transition(_S.PAUSED, _A.PAUSE),
        _E.STOP: Transition(_S.STOPPED_ENABLED, _A.STOP),
        _E.RESET: Transition(_S.STOPPED, _A.STOP),
    },
    _S.PAUSED: {
        _E.ADDR: Transition(_S.PAUSED, _A.UPDATE),
        _E.KICK: Transition(_S.PAUSED, _A.UPDATE),
        _E.ENABLE: Transition(_S.STARTED, _A.RESUME),
        _E.DISABLE: Transition(_S.PAUSED),
        _E.STOP: Transition(_S.STOPPED, _A.STOP),
        _E.RESET: Transition(_S.STOPPED, _A.STOP),
    },
}


def step_ring(state: RingState, event: RingEvent) -> Transition:
    """
    Look up what *event* does to a ring.

    Returns:
        The new state, to be kept once the action has succeeded.

    Raises:
        Refused: The event is not legal in this state.

    Spec: vhost-user, "Ring states".
    """
    transition = RING[state].get(event)
    if transition is None:
        raise Refused(EBUSY, f"{event.value} while the ring is {state.value}")
    return transition
