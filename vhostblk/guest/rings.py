"""A ring of the format that was negotiated, and the options it is made with."""

from dataclasses import dataclass

from vhostblk.guest.dma import Dma
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.packed import START, PackedRing
from vhostblk.guest.ring import SplitRing
from vhostblk.guest.shape import Ring, RingAddresses, RingFeatures, RingShape


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueOptions:
    """
    How a queue is set up.

    Args:
        size: Descriptors.
        base: Where the ring begins, as SET_VRING_BASE says it: of a split ring the index of the
            first entry, of a packed one ``packed.wire_base(index, wrap=...)``; ``None``: where a
            ring begins that was never used.
        addresses: Where the parts lie; ``None`` to allocate them.
        honour_notify: Kick only when the device wants it (see ``ring`` for the risk).
        nonblocking_kick: Make the kick eventfd non-blocking, as QEMU does.
    """

    size: int = 256
    base: int | None = None
    addresses: RingAddresses | None = None
    honour_notify: bool = False
    nonblocking_kick: bool = True


def base_of(options: QueueOptions, *, packed: bool) -> int:
    """Return where a ring of that format begins, as SET_VRING_BASE says it."""
    if options.base is not None:
        return options.base
    return START if packed else 0


def make_ring(memory: GuestMemory, options: QueueOptions, features: RingFeatures, dma: Dma) -> Ring:
    """Make an empty ring in guest memory, of the format that was negotiated."""
    packed, size = features.packed, options.size
    addresses = options.addresses or dma.allocate_ring(RingShape(size, packed))
    return (PackedRing if packed else SplitRing)(
        memory,
        addresses,
        size,
        base=base_of(options, packed=packed),
        event_idx=features.event_idx,
        in_order=features.in_order,
    )
