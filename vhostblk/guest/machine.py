"""What a guest is made of besides its device: RAM, the way devices see it, an IOMMU."""

from dataclasses import replace

from vhostblk.guest.confidential import Confidential, Kind
from vhostblk.guest.dma import Direct, Dma
from vhostblk.guest.firmware import Islands
from vhostblk.guest.iommu import Flush, Iommu, IommuOptions
from vhostblk.guest.layout import PAGE
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.negotiate import Wanted
from vhostblk.guest.personality import QEMU_VIOMMU
from vhostblk.guest.remapped import Remapped
from vhostblk.spec import virtio_ring as vr


class Machine:
    """
    A machine.

    Args:
        memory: Its RAM, which stays the caller's; ``None`` for 64 MiB of its own.
        confidential: What makes it a confidential guest.
        iommu: The IOMMU in front of the device, or how it flushes; ``None``: there is none.
    """

    def __init__(
        self,
        memory: GuestMemory | None,
        confidential: Kind | Confidential | None,
        iommu: Flush | IommuOptions | None,
    ) -> None:
        self.confidential = None if confidential is None else Confidential.of(confidential)
        self._own = memory is None
        self.memory = self._make_memory() if memory is None else memory
        try:
            self.iommu = None if iommu is None else Iommu(self.memory, iommu)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give RAM of its own back."""
        if self._own:
            self.memory.close()

    def wants(self, wanted: Wanted) -> Wanted:
        """Ask for what such a machine asks for as well, through its front-end."""
        if self.confidential is not None:
            wanted = self.confidential.wants(wanted)
        if self.iommu is not None:
            features = wanted.features | vr.F_ACCESS_PLATFORM
            wanted = replace(wanted, features=features, personality=QEMU_VIOMMU)
        return wanted

    def make_dma(self) -> Dma:
        """Make the driver's way to show the device memory."""
        if self.confidential is not None:
            return self._behind_iommu(self.confidential.make_dma(self.memory))
        # Behind an IOMMU a new ring must not be found through what showed an old one.
        align = 1 if self.iommu is None else PAGE
        return self._behind_iommu(Direct(self.memory, ring_align=align))

    def make_firmware_dma(self) -> Dma:
        """Make the firmware's way."""
        return self._behind_iommu(Islands(self.memory))

    def reset(self, *, firmware: bool) -> None:
        """Begin anew, as firmware or as the system."""
        if self.iommu is not None:
            self.iommu.reset(firmware=firmware)

    def _make_memory(self) -> GuestMemory:
        return GuestMemory() if self.confidential is None else self.confidential.make_memory()

    def _behind_iommu(self, dma: Dma) -> Dma:
        return dma if self.iommu is None else Remapped(dma, self.iommu)
