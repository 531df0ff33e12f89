"""
The back-end's own channel: requests that come from the back-end.

Spec: vhost-user, "Back-end message types"; a reply goes out only if the back-end asked for one.
"""

import queue
import socket

from vhostblk.guest import wire
from vhostblk.guest.connection import Connection
from vhostblk.guest.errors import DeadlineError, GuestError
from vhostblk.spec import vhost_user as vu


class BackendChannel:
    """
    Our end of the channel, and until it is handed over the back-end's.

    Args:
        timeout: Seconds a message may take.
    """

    def __init__(self, timeout: float = 10.0) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection = Connection(ours, timeout)
        self.served = False
        """Somebody else receives what comes, and puts what is not theirs into ``others``."""
        self.others: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()

    @property
    def backend_fd(self) -> int:
        """Return the end that SET_BACKEND_REQ_FD carries."""
        return self._theirs.fileno()

    def handed_over(self) -> None:
        """Close our copy of the back-end's end, so that its death is seen here."""
        self._theirs.close()

    def close(self) -> None:
        """Close both ends."""
        self._theirs.close()
        self.connection.close()

    def receive(self, timeout: float | None = None) -> wire.Message:
        """
        Receive a request of the back-end.

        Args:
            timeout: Seconds; ``None`` for the channel's.

        Returns:
            The request, of ``spec.vhost_user.BackendRequest``.

        Raises:
            DisconnectedError: The back-end closed the channel.
            DeadlineError: Nothing came.
        """
        return self.connection.receive("a request of the back-end", timeout)

    def wait_for(self, kind: int, timeout: float) -> wire.Message:
        """
        Wait for a request of one kind; where an IOMMU is served, that answers all others.

        Args:
            kind: Of ``spec.vhost_user.BackendRequest``, and none of an IOMMU's.
            timeout: Seconds.

        Returns:
            It; it is not answered yet.

        Raises:
            DisconnectedError: The back-end closed the channel.
            DeadlineError: It did not come.
            GuestError: Another one came.
        """
        what = f"back-end request {kind}"
        try:
            message = self.others.get(timeout=timeout) if self.served else self.receive(timeout)
        except queue.Empty:
            raise DeadlineError(f"timed out waiting for {what}") from None
        if message.request != kind:
            raise GuestError(f"back-end request {message.request} came instead of {what}")
        return message

    def reply(self, request: wire.Message, code: int = 0) -> None:
        """
        Answer, if the back-end asked for an answer.

        Args:
            request: What was received.
            code: 0 for success.
        """
        if request.flags & vu.FLAG_NEED_REPLY:
            self.connection.send(wire.message(request.request, wire.U64.pack(code), reply=True))
