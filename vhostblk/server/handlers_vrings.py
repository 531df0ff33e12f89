"""Rings: size, place, base, descriptors, start and stop."""

from errno import EINVAL

from vhostblk.errors import Refused
from vhostblk.protocol.messages import (
    GetVringBase,
    SetVringAddr,
    SetVringBase,
    SetVringCall,
    SetVringEnable,
    SetVringErr,
    SetVringKick,
    SetVringNum,
)
from vhostblk.server.attachment import Attachment
from vhostblk.server.place import Addresses
from vhostblk.spec.vhost_user import VringAddrFlag


async def set_vring_num(attachment: Attachment, message: SetVringNum) -> None:
    """
    Note a ring's size; a split ring's must be a power of two, which is seen when it starts.

    QEMU sends it before and others after SET_FEATURES, so the format is not known here.
    """
    most = attachment.device.options.queue_size
    if not 1 <= message.num <= most:
        raise Refused(EINVAL, f"a ring has 1 to {most} descriptors, not {message.num}")
    attachment.rings[message.index].set_num(message.num)


async def set_vring_base(attachment: Attachment, message: SetVringBase) -> None:
    """Note where a ring goes on; what its format allows is seen when it starts."""
    attachment.rings[message.index].set_base(message.base)


async def get_vring_base(attachment: Attachment, message: GetVringBase) -> int:
    """Stop a ring, with nothing in flight, and say where it stands."""
    base = await attachment.rings[message.index].stop()
    await attachment.stopped()
    return base


async def set_vring_addr(attachment: Attachment, message: SetVringAddr) -> None:
    """Note where a ring is, and whether and where its used ring is to be logged."""
    addresses = Addresses(desc=message.desc, avail=message.avail, used=message.used)
    ring = attachment.rings[message.index]
    attachment.detector.set_up(ring, addresses)
    used_log = message.log if VringAddrFlag.LOG in message.flags else None
    await ring.set_addresses(addresses, attachment.terms, used_log=used_log)


async def set_vring_kick(attachment: Attachment, message: SetVringKick) -> None:
    """Take the kick descriptor; an enabled ring starts."""
    ring = attachment.rings[message.index]
    attachment.detector.armed(ring, message.fd)
    await ring.set_kick(message.fd, attachment.terms)
    attachment.detector.started()


async def set_vring_call(attachment: Attachment, message: SetVringCall) -> None:
    """Take the call descriptor; comes long before the ring starts, and twice."""
    await attachment.rings[message.index].set_call(message.fd)


async def set_vring_err(attachment: Attachment, message: SetVringErr) -> None:
    """Take the err descriptor; unlike the others it is not sent again at a start."""
    await attachment.rings[message.index].set_err(message.fd)


async def set_vring_enable(attachment: Attachment, message: SetVringEnable) -> None:
    """Enable or disable a ring, set up or not."""
    await attachment.rings[message.index].enable(attachment.terms, on=message.enable)
    attachment.detector.started()
