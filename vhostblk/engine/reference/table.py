"""Indirect tables: a chain's descriptors somewhere else in guest memory."""

from vhostblk.blk.request import Buffer
from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.memory import GuestMemory, copy_in
from vhostblk.engine.reference.ring import Broken, Descriptor
from vhostblk.memory.space import Access, Denied, Missing
from vhostblk.spec.virtio_ring import DESC_SIZE

_ADDRESSES = 1 << 64
MAX_TABLE = 32768
"""Descriptors of an indirect table at most; virtio 1.3, 2.6."""


class IndirectTable:
    """
    An indirect table.

    Args:
        named: The descriptor that says where it is.
        at: Where that one is.
        memory: What its address means.
        allowed: There may be one here.

    Raises:
        Broken: There may be none, of that length, or there.

    Spec: virtio 1.3, 2.7.5.3, 2.8.7.
    """

    def __init__(self, named: Descriptor, at: int, memory: GuestMemory, *, allowed: bool) -> None:
        self.size, rest = divmod(named.length, DESC_SIZE)
        if not allowed or rest or not 1 <= self.size <= MAX_TABLE:
            raise Broken(Reason.INDIRECT, at, named.length)
        if named.address + named.length >= _ADDRESSES:
            raise Broken(Reason.TABLE_ADDRESS, at, named.address)
        self.address = named.address
        self.length = named.length
        self.at = at
        self.outside = False
        """What was read of it so far is denied or noted."""
        self._memory = memory

    def load(self, index: int) -> bytes:
        """
        Copy a descriptor out of it, once.

        Raises:
            Missing: It must be asked for, and with it the rest of the table.
            Denied: To go there is fatal.
            Broken: It may not be read.
        """
        address = self.address + DESC_SIZE * index
        try:
            found = self._memory.find(Buffer(address, DESC_SIZE, writable=False))
        except Missing as missing:
            needed = self.address + self.length - missing.iova
            raise Missing(missing.iova, needed, missing.access) from None
        except Denied as denied:
            self.outside = True
            if denied.fatal:
                raise
            raise Broken(Reason.TABLE_ADDRESS, index, self.address) from None
        self.outside |= any(Access.NOTED in one.access for one in found)
        return b"".join(copy_in(one.host, one.length) for one in found)
