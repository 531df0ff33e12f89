"""
The firmware of a confidential guest: islands of shared pages that come and go with each mapping.

OVMF has no pool.  Each mapping gets pages of its own, which are shared for as long as it lasts and
then taken back and cleared.  So before an operating system runs there is no window that a back-end
could learn, and on SEV-SNP each request leaves holes behind.
"""

from vhostblk.guest.dma import (
    CoherentRings,
    Copy,
    pages_of,
    share_pages,
)
from vhostblk.guest.layout import PAGE
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.shape import RingAddresses, RingShape
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec import virtio_ring as vr

FIRMWARE_FEATURES = (
    vb.F_RO | vb.F_BLK_SIZE | vb.F_FLUSH | vb.F_TOPOLOGY | vr.F_VERSION_1 | vr.F_ACCESS_PLATFORM
)
"""What OVMF's driver acknowledges: no indirect tables, no EVENT_IDX, one queue."""


class Islands:
    """
    OVMF's DMA interface in a confidential guest.

    Args:
        memory: The guest's.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._exposed: set[int] = set()
        self._rings = CoherentRings(memory, self._exposed)
        self._live: dict[int, Copy] = {}

    @property
    def exposed(self) -> frozenset[int]:
        """Return the GPAs of all pages that any ring or descriptor ever named."""
        return frozenset(self._exposed)

    @property
    def max_mapping(self) -> int | None:
        """Return ``None``: pages are found for any length."""
        return None

    def map(self, gpa: int, length: int, *, writable: bool, cpu: int = 0) -> int:  # noqa: ARG002 - it is a Dma
        """Share pages and copy the buffer there; see ``Dma.map``."""
        size = -(-length // PAGE) * PAGE
        address = share_pages(self._memory, size)
        self._live[address] = Copy.made(
            self._memory, gpa, address, length, writable=writable, room=(address, address + size)
        )
        self._exposed.update(pages_of(address, size))
        return address

    def unmap(self, address: int, written: int, *, spare: int = 0) -> None:
        """Copy back, take the pages back and clear them; see ``Dma.unmap``."""
        copy = self._live[address]
        complaint = copy.take_back(written, spare)
        self.drop(address)
        if complaint is not None:
            raise complaint

    def drop(self, address: int) -> None:
        """Take the pages back and clear them."""
        start, end = self._live.pop(address).room
        self._memory.set_private(start, end - start)
        self._memory.write(start, bytes(end - start))
        self._memory.free(start)

    def allocate_ring(self, shape: RingShape) -> RingAddresses:
        """Allocate a common buffer: memory shared where it is."""
        return self._rings.allocate(shape)

    def free_ring(self, addresses: RingAddresses) -> None:
        """Take its pages back."""
        self._rings.free(addresses)

    def close(self) -> None:
        """Do nothing: no island outlives its mapping."""
