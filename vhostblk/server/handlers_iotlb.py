"""What the front-end says of its IOMMU."""

from errno import EINVAL, EOPNOTSUPP

from vhostblk.errors import Refused
from vhostblk.memory.iotlb import checked
from vhostblk.protocol.messages import IotlbMsg
from vhostblk.server.attachment import Attachment
from vhostblk.spec.vhost_user import IotlbType


async def iotlb_msg(attachment: Attachment, message: IotlbMsg) -> None:
    """
    Learn a translation, asked for or not, or forget a range before its reply.

    Spec: vhost-user, "VHOST_USER_IOTLB_MSG"; "IOMMU support".
    """
    match message.kind:
        case IotlbType.UPDATE:
            table = attachment.space.table
            new = checked(
                table,
                iova=message.iova,
                size=message.size,
                uaddr=message.uaddr,
                perm=message.perm,
            )
            attachment.iommu.update(new)
        case IotlbType.INVALIDATE:
            if message.size == 0:
                raise Refused(EINVAL, "an invalidation of nothing")
            await attachment.misses.invalidate(message.iova, message.size)
        case _:
            # BATCH_BEGIN and BATCH_END are for vDPA; a MISS is ours to send.
            raise Refused(EOPNOTSUPP, f"an IOTLB message of type {message.kind}")
