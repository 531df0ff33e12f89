"""What a device, and what tells of it, sees of the front-end that is attached."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from vhostblk.engine.api import Queue
from vhostblk.memory.space import AddressSpace
from vhostblk.server.backing import Backing
from vhostblk.server.iommu import Iommu
from vhostblk.server.observer import Observer
from vhostblk.server.peer import Peer
from vhostblk.server.ring import Ring
from vhostblk.server.turn import Turn
from vhostblk.spec.vhost_user import ProtocolFeature


class Attached(Protocol):
    """
    A front-end's hold on a device; see `Attachment`.

    Attributes:
        features: Acked by the driver.
        protocol_features: Acked by the front-end.
        space: Guest memory.
        iommu: The front-end's.
        observer: Of the guest.
        lock: Held by a message while it is handled, and while the device is changed.
        peer: Who it is; None: not known.
        gone: Set when its queues are dropped.
        turn: When its queues may run.
    """

    features: int
    protocol_features: ProtocolFeature
    space: AddressSpace
    iommu: Iommu
    observer: Observer
    lock: asyncio.Lock
    peer: Peer | None
    gone: asyncio.Event
    turn: Turn

    @property
    def rings(self) -> Sequence[Ring]:
        """Return all of its rings."""
        ...

    @property
    def tracks(self) -> bool:
        """Whether its rings note in an inflight region what they take."""
        ...

    @property
    def logs(self) -> bool:
        """Whether what is written is logged."""
        ...

    async def pause(self, *, drain: bool, hold: bool = False) -> None:
        """
        Take the queues of all rings that run.

        Args:
            drain: With nothing in flight.
            hold: But for what errors hold, where the queues that take their place find it.
        """
        ...

    def go_on(self) -> None:
        """Hand them to their workers again."""
        ...

    def set_blk(self) -> None:
        """Have paused rings check requests by what the device promises now."""
        ...

    async def exchange(self, backing: Backing) -> list[Queue]:
        """
        Go on with queues for another disk, while all is paused and drained.

        Returns:
            The queues for the one before it, to be dropped.

        Raises:
            Exception: It did not work, and all is as it was.
        """
        ...

    def retire(self) -> None:
        """Never run any of the queues again."""
        ...

    def tell_config(self) -> bool:
        """Have the front-end read the config space again; whether it can be told."""
        ...
