"""
One front-end connection without its socket.

The transport reads exactly `Connection.want` bytes and gives them to `receive`; what a handler
makes of a message goes through `reply`, which knows who is answered how: messages with a reply of
their own, those that asked for an ack (REPLY_ACK), and those that wait for nothing.

Spec: vhost-user, "Communication", "VHOST_USER_PROTOCOL_F_REPLY_ACK".
"""

from collections.abc import Sequence
from errno import EINVAL, EOPNOTSUPP, EPROTO
from typing import TypeAlias

from vhostblk.errors import ProtocolError, Refused
from vhostblk.protocol import replies
from vhostblk.protocol.frames import Frame, Framer, encode
from vhostblk.protocol.messages import REQUESTS, Invalid, Message, Received
from vhostblk.protocol.parse import PARSERS, Body
from vhostblk.protocol.replies import InflightRegion, Outcome
from vhostblk.protocol.state import ConnectionState
from vhostblk.spec.vhost_user import FLAG_NEED_REPLY, FLAG_REPLY, ProtocolFeature

Reply: TypeAlias = tuple[bytes, tuple[int, ...]]
"""What to send: bytes (none: nothing is sent) and descriptors, which stay their owner's."""


class Connection:
    """
    Bytes and descriptors in, messages out; outcomes in, bytes out.

    Args:
        queues: How many rings the device has; an index beyond them is an error.
    """

    __slots__ = ("_framer", "_queues", "state")

    def __init__(self, *, queues: int) -> None:
        self._queues = queues
        self._framer = Framer(flags=0)
        self.state = ConnectionState()

    @property
    def want(self) -> int:
        """How many bytes the transport must read next, at most; never 0."""
        return self._framer.want

    @property
    def idle(self) -> bool:
        """Whether the stream stands between two messages; an end of file here is clean."""
        return self._framer.idle

    @property
    def partial(self) -> tuple[bytes, tuple[int, ...]]:
        """Return what has come of the next message; its descriptors stay here."""
        return self._framer.partial

    def go_on(self, data: bytes, fds: Sequence[int]) -> None:
        """
        Begin within a message, as another process has left it.

        Args:
            data: As `partial` returned it.
            fds: The same descriptors; owned from here on.

        Raises:
            ProtocolError: That is no part of a message.
        """
        self._framer.go_on(data, fds)

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> Received | None:
        """
        Take what one read returned.

        A message must have been answered (`reply`) before the next one is received.

        Args:
            data: Up to *want* bytes.
            fds: Descriptors of that read; owned here, then by the message.

        Returns:
            The message these bytes complete, if they do.  `Invalid` is to be refused with the
            errno and reason it carries.

        Raises:
            ProtocolError: The front-end erred and waits for no answer; every descriptor is
                closed and the connection must be, too.
        """
        frame = self._framer.feed(data, fds)
        return None if frame is None else self._accept(frame)

    def _accept(self, frame: Frame) -> Received:
        acks = ProtocolFeature.REPLY_ACK in self.state.protocol_features
        need_reply = acks and bool(frame.flags & FLAG_NEED_REPLY)
        try:
            return self._parse(frame, need_reply=need_reply)
        except Refused as refused:
            for fd in frame.fds:
                fd.close()
            features = self.state.protocol_features
            if not replies.can_refuse(frame.number, features, need_reply=need_reply):
                raise ProtocolError(str(refused)) from refused
            return Invalid(
                number=frame.number,
                errno=refused.errno,
                reason=str(refused),
                need_reply=need_reply,
            )

    def _parse(self, frame: Frame, *, need_reply: bool) -> Message:
        request = REQUESTS.get(frame.number)
        if request is None:
            raise Refused(EOPNOTSUPP, f"message {frame.number} is unknown")
        objection = self.state.objection(request)
        if objection is not None:
            raise Refused(EPROTO, objection)
        try:
            message = PARSERS[request](Body(frame.payload, frame.fds, need_reply))
        except ProtocolError as error:
            raise Refused(EINVAL, f"{request.name}: {error}") from error
        index = getattr(message, "index", 0)
        if index >= self._queues:
            raise Refused(EINVAL, f"{request.name}: ring {index} of {self._queues}")
        return message

    def reply(self, message: Received, outcome: Outcome) -> Reply:
        """
        Answer *message*, and note what its success changes.

        Args:
            message: What `receive` returned last.
            outcome: None: done; a value: the reply it asks for (a number, bytes of the config
                space, an InflightRegion); Refused: no.

        Raises:
            ProtocolError: It was refused and nothing can tell the front-end: the connection must
                be closed.
        """
        payload = replies.payload(message, outcome, self.state.protocol_features)
        if not isinstance(outcome, Refused):
            self.state = self.state.after(message)
        if payload is None:
            return b"", ()
        fds = (outcome.fd,) if isinstance(outcome, InflightRegion) else ()
        number = message.number if isinstance(message, Invalid) else message.request
        return encode(number, FLAG_REPLY, payload), fds

    def close(self) -> None:
        """Forget a message that came in part, and close its descriptors."""
        self._framer.close()
