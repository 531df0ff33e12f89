"""
The back-end's own channel: our requests to the front-end, on the socket of SET_BACKEND_REQ_FD.

An ack on it must never be waited for while the front-end may be waiting for us on the main socket:
QEMU answers CONFIG_CHANGE_MSG with a GET_CONFIG there.

Spec: vhost-user, "Back-end message types".
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from vhostblk.errors import ProtocolError
from vhostblk.protocol import wire
from vhostblk.protocol.frames import Framer, encode
from vhostblk.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, BackendRequest, IotlbType

_PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigChange:
    """
    The config space changed; the front-end shall read it again.

    Args:
        need_reply: Ask for an ack; only where REPLY_ACK is in force.
    """

    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IotlbMiss:
    """
    An address is needed that nothing translates.  The translation comes on the main socket.

    Always with need_reply: QEMU says no on this channel, and is silent without.

    Args:
        iova: First byte of a page.
        perm: 1 to be read, 2 to be written, 3 both.
    """

    iova: int
    perm: int


@dataclass(frozen=True, slots=True)
class Ack:
    """
    The front-end's answer to one of our requests.

    Args:
        request: Which one it answers.
        value: 0: done.
    """

    request: BackendRequest
    value: int


class Channel:
    """Requests out, acks in; acks come in the order of the requests that asked for one."""

    __slots__ = ("_framer", "_waiting")

    def __init__(self) -> None:
        self._framer = Framer(flags=FLAG_REPLY)
        self._waiting: deque[BackendRequest] = deque()

    @property
    def want(self) -> int:
        """How many bytes the transport must read next, at most; never 0."""
        return self._framer.want

    @property
    def state(self) -> tuple[tuple[int, ...], bytes]:
        """Return whose acks are still to come, in order, and what has come of the next one."""
        return tuple(self._waiting), self._framer.partial[0]

    def go_on(self, waiting: Sequence[int], data: bytes) -> None:
        """
        Go on where another process has left it.

        Args:
            waiting: As `state` returned it, and the rest.
            data: Part of an ack.

        Raises:
            ProtocolError: That is no part of one.
            ValueError: There is no such request.
        """
        self._waiting.extend(BackendRequest(number) for number in waiting)
        self._framer.go_on(data)

    def encode(self, message: ConfigChange | IotlbMiss) -> bytes:
        """Return the bytes of *message*, and expect its ack if it asks for one."""
        if isinstance(message, IotlbMiss):
            self._waiting.append(BackendRequest.IOTLB_MSG)
            payload = wire.IOTLB.pack(message.iova, _PAGE, 0, message.perm, IotlbType.MISS)
            return encode(BackendRequest.IOTLB_MSG, FLAG_NEED_REPLY, payload)
        request = BackendRequest.CONFIG_CHANGE_MSG
        if message.need_reply:
            self._waiting.append(request)
        return encode(request, FLAG_NEED_REPLY if message.need_reply else 0)

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> Ack | None:
        """
        Take what one read returned.

        Args:
            data: Up to *want* bytes.
            fds: Descriptors of that read; closed, as no ack brings one.

        Returns:
            The ack these bytes complete, if they do.

        Raises:
            ProtocolError: This is not the ack that is due.
        """
        frame = self._framer.feed(data, fds)
        if frame is None:
            return None
        for fd in frame.fds:
            fd.close()
        if not self._waiting or frame.number != self._waiting[0] or frame.fds:
            raise ProtocolError(f"message {frame.number} on the back-end's channel is not due")
        if len(frame.payload) != wire.U64.size:
            raise ProtocolError(f"an ack of {len(frame.payload)} bytes, expected {wire.U64.size}")
        (value,) = wire.U64.unpack(frame.payload)
        return Ack(self._waiting.popleft(), value)

    def close(self) -> None:
        """Forget an ack that came in part."""
        self._framer.close()
