"""Requests in one call each, for whoever can run one."""

from collections.abc import Sequence
from typing import Protocol

from vhostblk.guest.blk import Completion, Framing, Range, Request
from vhostblk.guest.errors import StatusError
from vhostblk.spec.virtio_blk import Status


class Verbs(Protocol):
    """What a driver can ask of a disk; all of it by ``run``."""

    def run(
        self,
        request: Request,
        *,
        queue: int = 0,
        framing: Framing | None = None,
        timeout: float | None = None,
    ) -> Completion:
        """Run a request to its end."""

    def read(
        self, sector: int, length: int, *, queue: int = 0, framing: Framing | None = None
    ) -> bytes:
        """
        Read.

        Args:
            sector: First.
            length: Bytes.
            queue: Which.
            framing: How the request is cut.

        Returns:
            *length* bytes.

        Raises:
            StatusError: The status is not OK; and otherwise as ``wait``.
        """
        return self._ok(Request.read(sector, length), queue, framing).data

    def write(
        self, sector: int, data: bytes, *, queue: int = 0, framing: Framing | None = None
    ) -> None:
        """Write *data* (see ``read``)."""
        self._ok(Request.write(sector, data), queue, framing)

    def flush(self, *, queue: int = 0) -> None:
        """Make completed writes stable (see ``read``)."""
        self._ok(Request.flush(), queue, None)

    def discard(self, ranges: Sequence[Range], *, queue: int = 0) -> None:
        """Discard *ranges* (see ``read``)."""
        self._ok(Request.discard(ranges), queue, None)

    def write_zeroes(self, ranges: Sequence[Range], *, queue: int = 0) -> None:
        """Make *ranges* read as zeros (see ``read``)."""
        self._ok(Request.write_zeroes(ranges), queue, None)

    def get_id(self, *, queue: int = 0) -> bytes:
        """Return the serial up to the first NUL (see ``read``)."""
        return self._ok(Request.get_id(), queue, None).data.partition(b"\0")[0]

    def _ok(self, request: Request, queue: int, framing: Framing | None) -> Completion:
        completion = self.run(request, queue=queue, framing=framing)
        if completion.status != Status.OK:
            raise StatusError(str(request), completion.status)
        return completion
