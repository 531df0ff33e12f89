"""What a device, and what tells of it, sees of the front-end that is attached."""

from collections.abc import Sequence
from typing import Protocol

from vhostblk.memory.space import AddressSpace
from vhostblk.server.iommu import Iommu
from vhostblk.server.observer import Observer
from vhostblk.server.ring import Ring


class Attached(Protocol):
    """
    A front-end's hold on a device; see `Attachment`.

    Attributes:
        features: Acked by the driver.
        space: Guest memory.
        iommu: The front-end's.
        observer: Of the guest.
    """

    features: int
    space: AddressSpace
    iommu: Iommu
    observer: Observer

    @property
    def rings(self) -> Sequence[Ring]:
        """Return all of its rings."""
        ...
