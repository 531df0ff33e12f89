"""Guest memory: whole tables and single slots, while rings run or not."""

import asyncio

from vhostblk.errors import Refused
from vhostblk.memory.regions import Change, Place, Wanted
from vhostblk.protocol.messages import AddMemReg, MemoryRegion, RemMemReg, SetMemTable
from vhostblk.server.attachment import Attachment


async def set_mem_table(attachment: Attachment, message: SetMemTable) -> None:
    """Replace the table; an unchanged one changes nothing."""
    wanted = [_wanted(region) for region in message.regions]
    await _install(attachment, attachment.space.table.replace(wanted))


async def add_mem_reg(attachment: Attachment, message: AddMemReg) -> None:
    """Add a region."""
    await _install(attachment, attachment.space.table.add(_wanted(message.region)))


async def rem_mem_reg(attachment: Attachment, message: RemMemReg) -> None:
    """Remove a region; its mmap_offset means nothing here (QEMU sends 0)."""
    await _install(attachment, attachment.space.table.remove(_place(message.region)))


def _place(region: MemoryRegion) -> Place:
    return Place(gpa=region.gpa, size=region.size, uva=region.uva)


def _wanted(region: MemoryRegion) -> Wanted:
    if region.fd is None:
        raise AssertionError("the parser lets no such region through")
    return Wanted(place=_place(region), mmap_offset=region.mmap_offset, fd=region.fd.take())


async def _install(attachment: Attachment, change: Change) -> None:
    """
    Take a new table into use: *adding needs parked; removing needs drained*.

    Args:
        attachment: The front-end's.
        change: As the old table computed it; what it added is released when it is refused.

    Raises:
        Refused: A ring that runs would lose its memory; nothing has changed.
    """
    if not change.added and not change.removed:
        return
    space = attachment.build(change.table)
    try:
        for ring in attachment.running:
            ring.check(space)  # one behind an IOMMU can always wait
    except Refused:
        for region in change.added:
            region.mapping.release()
        raise
    for region in change.added:
        attachment.device.guard(region.mapping)
    drain = bool(change.removed)
    if drain:
        attachment.observer.end(drained=False)
    attachment.space = space
    attachment.iommu.iotlb.drop()
    terms = attachment.terms
    await asyncio.gather(*(ring.move(terms, drain=drain) for ring in attachment.running))
    attachment.device.bury([region.mapping for region in change.removed])
