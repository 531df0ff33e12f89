"""Who can what: virtio features, protocol features, numbers of things."""

from errno import EBUSY, EINVAL

from vhostblk.errors import Refused
from vhostblk.protocol.messages import (
    GetFeatures,
    GetMaxMemSlots,
    GetProtocolFeatures,
    GetQueueNum,
    SetBackendReqFd,
    SetFeatures,
    SetOwner,
    SetProtocolFeatures,
)
from vhostblk.server.attachment import Attachment
from vhostblk.server.device import Device
from vhostblk.spec.vhost_user import (
    MAX_MEM_SLOTS,
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    ProtocolFeature,
)

_ALWAYS = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""What we offer; each of them works."""


async def get_features(attachment: Attachment, _: GetFeatures) -> int:
    """Return what the device offers."""
    return attachment.device.features


async def set_features(attachment: Attachment, message: SetFeatures) -> None:
    """
    Note what the driver acked; without bit 30 its rings are enabled from the start.

    While rings run only LOG_ALL may change: that is how a migration begins and ends.
    """
    unknown = message.features & ~attachment.device.features
    if unknown:
        raise Refused(EINVAL, f"feature bits {unknown:#x} were not offered")
    changed = message.features ^ attachment.features
    if changed & ~VHOST_F_LOG_ALL and attachment.running:
        raise Refused(EBUSY, "features cannot change while rings run")
    attachment.features = message.features
    if changed:
        await attachment.relog()
    await attachment.stopped()
    # Never the other way round: rings that are enabled stay so.
    if not message.features & VHOST_USER_F_PROTOCOL_FEATURES:
        for ring in attachment.rings:
            await ring.enable(attachment.terms, on=True)


def protocol_features(device: Device) -> ProtocolFeature:
    """Return what we offer for a device; some of it needs a data plane that can."""
    features = _ALWAYS
    if device.can_inflight:
        features |= ProtocolFeature.INFLIGHT_SHMFD
    if device.can_log:
        features |= ProtocolFeature.LOG_SHMFD
    return features


async def get_protocol_features(attachment: Attachment, _: GetProtocolFeatures) -> int:
    """Return what we offer."""
    return protocol_features(attachment.device)


async def set_protocol_features(attachment: Attachment, message: SetProtocolFeatures) -> None:
    """Note what the front-end acked; the connection keeps it, too."""
    unknown = message.features & ~protocol_features(attachment.device)
    if unknown:
        raise Refused(EINVAL, f"protocol feature bits {int(unknown):#x} were not offered")
    if message.features != attachment.protocol_features and attachment.running:
        # Rings behind an IOMMU would have lost it.
        raise Refused(EBUSY, "protocol features cannot change while rings run")
    attachment.protocol_features = message.features


async def get_queue_num(attachment: Attachment, _: GetQueueNum) -> int:
    """Return how many queues the device has."""
    return attachment.device.blk.num_queues


async def get_max_mem_slots(_: Attachment, _message: GetMaxMemSlots) -> int:
    """Return how many regions fit."""
    return MAX_MEM_SLOTS


async def set_owner(_: Attachment, _message: SetOwner) -> None:
    """Accept: whoever is connected owns the device."""


async def set_backend_req_fd(attachment: Attachment, message: SetBackendReqFd) -> None:
    """Keep the socket for requests of our own; it is not sent again at a start."""
    attachment.iommu.set_channel(message.fd.take())
