"""The dirty log: where the pages that the device writes are noted while a guest migrates."""

from errno import EINVAL

from vhostblk.errors import Refused
from vhostblk.memory.dirty import log_bytes
from vhostblk.memory.mapping import Mapping
from vhostblk.protocol.messages import SetLogBase, SetLogFd
from vhostblk.server.attachment import Attachment

_END = 1 << 63


async def set_log_base(attachment: Attachment, message: SetLogBase) -> None:
    """
    Take a log; it comes before LOG_ALL does, and again when the guest's memory grows.

    Once this is answered no queue marks the one before it.

    Spec: vhost-user, "VHOST_USER_SET_LOG_BASE"; "Migration".
    """
    if message.fd is None:
        raise Refused(EINVAL, "a dirty log without its descriptor: LOG_SHMFD was not acked")
    if message.mmap_size == 0 or message.mmap_size + message.mmap_offset > _END:
        raise Refused(
            EINVAL, f"a dirty log of {message.mmap_size:#x} bytes at {message.mmap_offset:#x}"
        )
    log = Mapping(message.fd.take(), offset=message.mmap_offset, length=message.mmap_size)
    attachment.device.guard(log)
    if (needed := log_bytes(attachment.space.table)) > log.length:
        attachment.device.log.warning(
            "the dirty log of %d bytes has no bits for all memory, which takes %d: pages behind "
            "its end would be missing at the end of a migration",
            log.length,
            needed,
        )
    await attachment.log_into(log)


async def set_log_fd(_: Attachment, _message: SetLogFd) -> None:
    """
    Accept the descriptor that would tell of a log that has grown, and close it.

    It is optional for the back-end; QEMU never sends it, and looks at the log by itself.
    """
