"""
What front-ends make of a confidential guest's features; they do not agree on it.

Each forces ACCESS_PLATFORM on the driver, and then tells the back-end something else.  Without a
vIOMMU, ring addresses are the front-end's and descriptors hold guest addresses.
"""

from dataclasses import dataclass

from vhostblk.guest.errors import GuestError
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature

_NOTHING = ProtocolFeature(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Personality:
    """
    A front-end.

    Args:
        name: Of the program.
        hides: Virtio features it takes out of SET_FEATURES though the driver acknowledged them.
        lacks: Protocol features it never agrees on.
        refuses: It turns away a back-end that cannot serve a confidential guest.
    """

    name: str
    hides: int = 0
    lacks: ProtocolFeature = _NOTHING
    refuses: bool = False

    def check(self, offered: int, agreed: ProtocolFeature) -> None:
        """
        Turn a back-end away, if this front-end does.

        Args:
            offered: Virtio features of the back-end.
            agreed: Protocol features of both.

        Raises:
            GuestError: What QEMU would say.
        """
        if not self.refuses:
            return
        if not offered & vr.F_ACCESS_PLATFORM:
            raise GuestError("iommu_platform=true is not supported by the device")
        needed = ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ
        if agreed & needed != needed:
            raise GuestError("IOMMU support requires reply-ack and backend-req protocol features")


PLAIN = Personality(name="plain")
"""Passes on what the driver acknowledged."""
QEMU_COCO = Personality(name="qemu-coco", hides=vr.F_ACCESS_PLATFORM)
"""QEMU with a confidential guest and no vIOMMU, but for its refusals."""
QEMU_COCO_STRICT = Personality(name="qemu-coco", hides=vr.F_ACCESS_PLATFORM, refuses=True)
"""The same with them: the back-end has to offer bit 33, REPLY_ACK and BACKEND_REQ."""
QEMU_VIOMMU = Personality(name="qemu-viommu", refuses=True)
"""QEMU with a vIOMMU: bit 33 comes through, and there is an IOTLB (see ``iommu``)."""
CROSVM = Personality(name="crosvm")
"""crosvm with a protected guest: bit 33 is set, and there is no IOTLB all the same."""
CLOUD_HYPERVISOR = Personality(
    name="cloud-hypervisor", hides=vr.F_ACCESS_PLATFORM, lacks=ProtocolFeature.BACKEND_REQ
)
"""cloud-hypervisor, which has no back-end channel for block devices."""
NO_REPLY_ACK = Personality(
    name="no-REPLY_ACK", hides=vr.F_ACCESS_PLATFORM, lacks=ProtocolFeature.REPLY_ACK
)
"""A front-end that waits by GET_FEATURES instead."""
