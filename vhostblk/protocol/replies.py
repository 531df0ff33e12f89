"""
From what a handler returned to the payload of the answer.

Three kinds of message: those with a reply of their own (the table `OWN`), those that are only
acked when their sender asked, and those that get nothing.  An answer can only say no if its
format has room for it; where it has none, the connection ends.

Spec: vhost-user, "Communication"; "VHOST_USER_GET_CONFIG".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from vhostblk.errors import ProtocolError, Refused
from vhostblk.protocol import wire
from vhostblk.protocol.messages import REQUESTS, GetConfig, GetVringBase, Invalid, Received
from vhostblk.spec.vhost_user import ProtocolFeature, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class InflightRegion:
    """
    The answer to GET_INFLIGHT_FD.

    Args:
        mmap_size: Bytes of the region.
        mmap_offset: Where it begins in *fd*.
        num_queues: Queues it has room for.
        queue_size: Descriptors of each.
        fd: The memory; stays the caller's, and is never 0, which QEMU takes for none.
    """

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int
    fd: int


Outcome: TypeAlias = int | bytes | InflightRegion | Refused | None
"""What handling a message came to: done, a value for its reply, or a refusal."""


@dataclass(frozen=True, slots=True)
class _Own:
    """
    How a message with a reply of its own is answered.

    Args:
        value: Builds the payload of a good answer.
        refusal: Builds the payload that says no from an errno; None: there is none.
    """

    value: Callable[[Received, Outcome], bytes]
    refusal: Callable[[int], bytes] | None = None


def _u64(_: Received, outcome: Outcome) -> bytes:
    if not isinstance(outcome, int):
        raise TypeError(f"a number is due, not {outcome!r}")
    return wire.U64.pack(outcome)


def _status(_: Received, outcome: Outcome) -> bytes:
    return wire.U64.pack(outcome if isinstance(outcome, int) else 0)


def _errno(errno: int) -> bytes:
    return wire.U64.pack(errno)


def _base(message: Received, outcome: Outcome) -> bytes:
    if not isinstance(message, GetVringBase) or not isinstance(outcome, int):
        raise TypeError(f"a ring's base is due, not {outcome!r}")
    return wire.VRING_STATE.pack(message.index, outcome)


def _config(message: Received, outcome: Outcome) -> bytes:
    if not isinstance(message, GetConfig) or not isinstance(outcome, bytes):
        raise TypeError(f"bytes of the config space are due, not {outcome!r}")
    if len(outcome) != message.size:
        raise ValueError(f"{len(outcome)} bytes of config space where {message.size} were asked")
    return wire.CONFIG.pack(message.offset, message.size, message.flags) + outcome


def _inflight(_: Received, outcome: Outcome) -> bytes:
    if not isinstance(outcome, InflightRegion):
        raise TypeError(f"an inflight region is due, not {outcome!r}")
    return wire.INFLIGHT.pack(
        outcome.mmap_size, outcome.mmap_offset, outcome.num_queues, outcome.queue_size
    )


def _no_inflight(_: int) -> bytes:
    # Size 0 and no descriptor: the front-end goes on without a region.
    return wire.INFLIGHT.pack(0, 0, 0, 0)


def _no_config(_: int) -> bytes:
    # The standard's way to refuse: a reply without payload.
    return b""


OWN: dict[Request, _Own] = {
    Request.GET_FEATURES: _Own(_u64),
    Request.GET_PROTOCOL_FEATURES: _Own(_u64),
    Request.GET_QUEUE_NUM: _Own(_u64),
    Request.GET_MAX_MEM_SLOTS: _Own(_u64),
    Request.GET_STATUS: _Own(_u64),
    Request.GET_VRING_BASE: _Own(_base),
    Request.GET_CONFIG: _Own(_config, _no_config),
    Request.GET_INFLIGHT_FD: _Own(_inflight, _no_inflight),
    # Answered without being asked, but only where LOG_SHMFD is in force.
    Request.SET_LOG_BASE: _Own(_status, _errno),
}


def _own(number: int, features: ProtocolFeature) -> _Own | None:
    if number == Request.SET_LOG_BASE and ProtocolFeature.LOG_SHMFD not in features:
        return None
    request = REQUESTS.get(number)
    return None if request is None else OWN.get(request)


def can_refuse(number: int, features: ProtocolFeature, *, need_reply: bool) -> bool:
    """Whether the sender of message *number* waits for an answer that can say no."""
    own = _own(number, features)
    return need_reply if own is None else own.refusal is not None


def payload(message: Received, outcome: Outcome, features: ProtocolFeature) -> bytes | None:
    """
    Build the answer to *message*.

    Args:
        message: What came.
        outcome: What handling it came to.
        features: Protocol features in force when it came.

    Returns:
        The payload of the reply, or None where nothing is sent.

    Raises:
        ProtocolError: It was refused, and no answer can say so: the connection must end.

    Spec: vhost-user, "Communication".
    """
    number = message.number if isinstance(message, Invalid) else message.request
    own = _own(number, features)
    if isinstance(outcome, Refused):
        if not can_refuse(number, features, need_reply=message.need_reply):
            raise ProtocolError(f"message {number} refused: {outcome}")
        refusal = _errno if own is None or own.refusal is None else own.refusal
        return refusal(outcome.errno)
    if own is not None:
        return own.value(message, outcome)
    return wire.U64.pack(0) if message.need_reply else None
