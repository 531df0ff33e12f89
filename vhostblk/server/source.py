"""Where a device's front-ends come from."""

import socket
from pathlib import Path
from typing import Protocol

from vhostblk.server.gate import Brake
from vhostblk.server.handover import SourceState


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

    @property
    def brake(self) -> Brake:
        """Where `accept` stands still with nothing half done."""
        ...

    def share(self) -> SourceState:
        """Return what another process needs to go on in our place; its descriptor stays ours."""
        ...

    def leave(self) -> None:
        """Do as `close` does, but leave behind what another process goes on with."""
        ...

    def close(self) -> None:
        """Bring no more connections: an `accept` that waits returns None."""
        ...


class Spent:
    """No connections any more: the one there was goes on in this process."""

    path: Path | None = None

    def __init__(self) -> None:
        self.brake = Brake(lambda: None)

    async def accept(self) -> socket.socket | None:
        """Return None."""
        return None

    def share(self) -> SourceState:
        """Return what it is."""
        return SourceState(kind="connected")

    def leave(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
