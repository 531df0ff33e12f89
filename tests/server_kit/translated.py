"""Guests behind an IOMMU, and what is known of their page tables."""

import random

from server_kit.serving import Serving
from vhostblk.disk.memory import Memory
from vhostblk.guest import Guest, GuestMemory, IommuOptions
from vhostblk.guest.iommu import Flush, Iommu, Mapped
from vhostblk.guest.shape import RingAddresses

PAGE = 4096
MIB = 1 << 20
SIZE = 4 * MIB
BLOCK = 3 * PAGE
SECTORS = BLOCK // 512
FLUSHES: list[Flush] = ["page", "aligned", "global"]


def attach(
    server: Serving,
    iommu: Flush | IommuOptions = "page",
    *,
    queues: int = 1,
    size: int = 64,
    memory: GuestMemory | None = None,
    **options: object,
) -> Guest:
    """Serve a memory disk to a guest behind an IOMMU."""
    path = server.add(Memory(SIZE), num_queues=queues, **options)
    return Guest.connect(path, queues=queues, queue_size=size, iommu=iommu, memory=memory)


def table(guest: Guest) -> Iommu:
    assert guest.iommu is not None
    return guest.iommu


def ring(guest: Guest, index: int = 0) -> RingAddresses:
    assert guest.session.rings is not None
    return guest.session.rings.shown(index)


def is_ring(one: Mapped) -> bool:
    return one.perm == 3


def is_data(one: Mapped) -> bool:
    """Whether this is a buffer of a `BLOCK` or more, no header, status or ring."""
    return one.length >= BLOCK and not is_ring(one)


def blocks(count: int, seed: int = 1) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(BLOCK) for _ in range(count)]


def write_all(guest: Guest, data: list[bytes]) -> None:
    for i, block in enumerate(data):
        guest.write(SECTORS * i, block)
