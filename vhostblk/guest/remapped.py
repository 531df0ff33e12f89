"""
A device behind an IOMMU, from the driver's side: buffers and rings are mapped, addresses are IOVAs.

`iommu` is the page table and the front-end that speaks for it; this is who fills it.
"""

from dataclasses import dataclass, field

from vhostblk.guest.dma import Dma
from vhostblk.guest.iommu import READ, WRITE, Iommu
from vhostblk.guest.shape import RingAddresses, RingShape


class Remapped:
    """
    The driver's way to show memory to a device behind an IOMMU.

    Args:
        dma: How it would show it without.
        iommu: The IOMMU.
    """

    def __init__(self, dma: Dma, iommu: Iommu) -> None:
        self._dma = dma
        self._iommu = iommu
        self._live: dict[int, int] = {}

    @property
    def max_mapping(self) -> int | None:
        """Return the limit without the IOMMU: it adds none."""
        return self._dma.max_mapping

    def map(self, gpa: int, length: int, *, writable: bool, cpu: int = 0) -> int:
        """Map the pages, with no more rights than are needed."""
        at = self._dma.map(gpa, length, writable=writable, cpu=cpu)
        address = self._iommu.map(at, length, WRITE if writable else READ)
        self._live[address] = at
        return address

    def unmap(self, address: int, written: int, *, spare: int = 0) -> None:
        """Unmap, and have the device forget."""
        at = self._live.pop(address)
        self._iommu.unmap(address)
        self._dma.unmap(at, written, spare=spare)

    def drop(self, address: int) -> None:
        """Unmap what the device may still be using."""
        at = self._live.pop(address)
        self._iommu.unmap(address)
        self._dma.drop(at)

    def allocate_ring(self, shape: RingShape) -> RingAddresses:
        """Allocate a ring; `RingMap` shows it to the device."""
        return self._dma.allocate_ring(shape)

    def free_ring(self, addresses: RingAddresses) -> None:
        """Give the memory of a ring back."""
        self._dma.free_ring(addresses)

    def close(self) -> None:
        """Close what is below; the IOMMU stays, for the driver after this one."""
        self._dma.close()


@dataclass(slots=True)
class RingMap:
    """
    Where the IOMMU shows the rings of a device.

    Args:
        iommu: The IOMMU.
    """

    iommu: Iommu
    _shown: dict[int, RingAddresses] = field(default_factory=dict)

    def show(self, index: int, addresses: RingAddresses, shape: RingShape) -> RingAddresses:
        """Map the parts of ring *index*, in place of those it had; return their IOVAs."""
        self._unmap(index)
        both = READ | WRITE
        shown = RingAddresses(
            desc=self.iommu.map(addresses.desc, shape.desc_bytes, both),
            avail=self.iommu.map(addresses.avail, shape.avail_bytes, both),
            used=self.iommu.map(addresses.used, shape.used_bytes, both),
        )
        self._shown[index] = shown
        return shown

    def shown(self, index: int) -> RingAddresses:
        """Return the IOVAs of the parts of ring *index*."""
        return self._shown[index]

    def forget(self) -> None:
        """Unmap all rings, as when the machine is reset."""
        for index in tuple(self._shown):
            self._unmap(index)

    def _unmap(self, index: int) -> None:
        before = self._shown.pop(index, None)
        if before is not None:
            for iova in (before.desc, before.avail, before.used):
                self.iommu.unmap(iova)

    def tell(self, index: int) -> None:
        """
        Send the page of a used ring unasked, as QEMU does at a start.

        For a queue that was never set up QEMU takes IOVA 0, and says nothing where that is not
        mapped.
        """
        iova = self._shown[index].used if index in self._shown else 0
        if self.iommu.find(iova) is not None:
            self.iommu.tell(iova)
