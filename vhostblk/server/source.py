"""Where a device's front-ends come from."""

import socket
from pathlib import Path
from typing import Protocol


class Source(Protocol):
    """Connections, one after the other; see `Listener` and `Connector`."""

    @property
    def path(self) -> Path | None:
        """The socket it has to do with; None: whoever opened it knows."""
        ...

    async def accept(self) -> socket.socket | None:
        """
        Return the next connection; None when there will be no more.

        Raises:
            OSError: There is one and it cannot be had, for want of descriptors.
        """
        ...

    def close(self) -> None:
        """Bring no more connections: an `accept` that waits returns None."""
        ...
