"""The config space, the device status, and the ways to reset."""

import asyncio
from errno import EINVAL, EIO

from vhostblk.errors import Refused
from vhostblk.protocol.messages import (
    GetConfig,
    GetStatus,
    ResetDevice,
    ResetOwner,
    SetConfig,
    SetStatus,
)
from vhostblk.server.attachment import Attachment

MAX_STATUS = 0xFF


async def get_config(attachment: Attachment, message: GetConfig) -> bytes:
    """Return a part of the config space."""
    attachment.detector.config_read()
    return attachment.device.config.read(message.offset, message.size)


async def set_config(attachment: Attachment, message: SetConfig) -> None:
    """
    Turn the write cache on or off: off makes earlier writes stable first, then binds later ones.

    Spec: virtio 1.3, 5.2.6.2.
    """
    config = attachment.device.config
    before = config.writeback
    config.write(message.offset, message.data, message.flags)
    if config.writeback == before:
        return
    try:
        await _change_cache(attachment)
    except OSError as error:
        config.writeback = before
        raise Refused(EIO, f"the write cache stays on: {error}") from error


async def _change_cache(attachment: Attachment) -> None:
    """
    Let the rings follow the write cache switch.

    Raises:
        OSError: Earlier writes could not be made stable; the rings go on as before.
    """
    rings = attachment.running
    drain = attachment.writethrough
    await asyncio.gather(*(ring.keeper.take_back(drain=drain) for ring in rings))
    try:
        if drain:
            await attachment.device.flush()
        for ring in rings:
            ring.queue.set_blk(attachment.device.blk, writethrough=attachment.writethrough)
    finally:
        for ring in rings:
            ring.keeper.hand_over()


async def get_status(attachment: Attachment, _: GetStatus) -> int:
    """Return what was set."""
    return attachment.status


async def set_status(attachment: Attachment, message: SetStatus) -> None:
    """
    Note the status; 0 stops and disables the rings.

    The write cache switch stays: QEMU sends 0 for a paused guest, too, which goes on believing
    what it has set.  RESET_DEVICE is the reset that a guest means.
    """
    if message.status > MAX_STATUS:
        raise Refused(EINVAL, f"a device status has 8 bits: {message.status:#x}")
    if message.status == 0:
        await attachment.reset()
    attachment.status = message.status


async def reset_device(attachment: Attachment, _: ResetDevice) -> None:
    """Reset the device, write cache switch included; memory and the connection stay."""
    await attachment.reset()
    attachment.inflight.forget()
    attachment.device.config.reset()


async def reset_owner(attachment: Attachment, _: ResetOwner) -> None:
    """Stop and disable the rings: all that is left of this message's old meaning."""
    await attachment.reset()
