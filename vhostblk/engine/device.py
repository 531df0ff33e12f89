"""What a data plane has of one device; part of `vhostblk.engine.api`, where it is imported from."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from vhostblk.engine.job import Mailbox
from vhostblk.engine.told import Ways

if TYPE_CHECKING:  # it is made of this
    from vhostblk.engine.api import Queue


class Driven(Protocol):
    """Layers of the engine that a layer in Python calls, on the thread of their disk."""

    @property
    def mailbox(self) -> Mailbox | None:
        """Where what they hand on waits; None where the engine serves the disk itself."""
        ...

    @property
    def below(self) -> object:
        """The disk, or layer in Python, that does those jobs."""
        ...

    def on_revoked(self, cancel: Callable[[], None]) -> None:
        """
        Say who cancels what was given up by somebody else.

        Args:
            cancel: Called on the disk's thread, before the engine goes on, behind a `revoke`.
        """
        ...

    def lent(self, refs: Sequence[ref[object]]) -> None:
        """
        Memory of a job of `mailbox` that is over goes on being used; called before that is told.

        Args:
            refs: To what uses it.
        """
        ...

    def revoke(self) -> None:
        """Guest memory was taken from some requests; any thread."""
        ...


class DeviceEngine(Protocol):
    """One device's share of an engine."""

    def queue(self, index: int, *, on_broken: Callable[[], None]) -> "Queue":
        """
        Make a queue, parked, at base 0 and without a ring.

        Args:
            index: Its number in the device, for log lines and worker choice.
            on_broken: Called on the control thread when the queue breaks.
        """
        ...

    def dead(self) -> int:
        """Return how many cancelled requests are still with the disk."""
        ...

    def ways(self) -> Ways | None:
        """Return which way reads and writes take; None: it is not a file that this serves."""
        ...

    async def close(self) -> None:
        """Let go of the disk; every queue was closed before."""
        ...
