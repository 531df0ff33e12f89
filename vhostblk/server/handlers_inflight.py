"""The inflight region: asked for when a driver begins, handed back after a crash of ours."""

from errno import EBUSY

from vhostblk.errors import Refused
from vhostblk.protocol.messages import GetInflightFd, SetInflightFd
from vhostblk.protocol.replies import InflightRegion
from vhostblk.server.attachment import Attachment


async def get_inflight_fd(attachment: Attachment, message: GetInflightFd) -> InflightRegion:
    """Make a region; the front-end asks for it once after each reset of the driver's."""
    return attachment.inflight.offer(message.num_queues, message.queue_size)


async def set_inflight_fd(attachment: Attachment, message: SetInflightFd) -> None:
    """
    Take a region into use, before memory and rings come.

    One that was not asked for on this connection has a past: its driver goes on with what it had,
    once the kernel has done with what a dead process had in flight.
    """
    if attachment.running:
        raise Refused(EBUSY, "an inflight region cannot come while rings run")
    area = attachment.inflight.take(
        message.fd,
        mmap_size=message.mmap_size,
        mmap_offset=message.mmap_offset,
        num_queues=message.num_queues,
        queue_size=message.queue_size,
    )
    past = not attachment.inflight.asked
    if past:
        attachment.device.resume()
    await attachment.turn.note(area, past=past)
