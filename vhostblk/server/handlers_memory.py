"""Guest memory: whole tables and single slots, while rings run or not."""

from vhostblk.memory.regions import Place, Wanted
from vhostblk.protocol.messages import AddMemReg, MemoryRegion, RemMemReg, SetMemTable
from vhostblk.server.attachment import Attachment


async def set_mem_table(attachment: Attachment, message: SetMemTable) -> None:
    """Replace the table; an unchanged one changes nothing."""
    wanted = [_wanted(region) for region in message.regions]
    await attachment.install(attachment.space.table.replace(wanted))


async def add_mem_reg(attachment: Attachment, message: AddMemReg) -> None:
    """Add a region."""
    await attachment.install(attachment.space.table.add(_wanted(message.region)))


async def rem_mem_reg(attachment: Attachment, message: RemMemReg) -> None:
    """Remove a region; its mmap_offset means nothing here (QEMU sends 0)."""
    await attachment.install(attachment.space.table.remove(_place(message.region)))


def _place(region: MemoryRegion) -> Place:
    return Place(gpa=region.gpa, size=region.size, uva=region.uva)


def _wanted(region: MemoryRegion) -> Wanted:
    if region.fd is None:
        raise AssertionError("the parser lets no such region through")
    return Wanted(place=_place(region), mmap_offset=region.mmap_offset, fd=region.fd.take())
