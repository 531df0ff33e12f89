"""What a ring runs by."""

from collections.abc import Sequence
from dataclasses import dataclass
from errno import EINVAL

from vhostblk.blk.device import BlkDevice
from vhostblk.errors import Refused
from vhostblk.memory.dirty import DirtyLog, log_regions
from vhostblk.memory.mapping import Mapping
from vhostblk.memory.space import AddressSpace
from vhostblk.server.inflight import Area
from vhostblk.server.place import Part, Place, check_base
from vhostblk.spec.virtio_ring import F_RING_PACKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """
    What a ring runs by; gathered anew at each start, as a driver may ack less than the last one.

    Args:
        features: Acked by the driver.
        space: Guest memory.
        translated: The same behind the driver's IOMMU; None where there is none.
        blk: What the device promises.
        writethrough: Every write is stable before its status.
        always_translated: Its addresses go through the IOMMU if there is one, wherever it is.
        required: Feature bits without which it does not start.
        inflight: Where its queue notes what it has taken; None: nowhere.
        log: Where it notes which pages it writes; None: nowhere.
    """

    features: int
    space: AddressSpace
    translated: AddressSpace | None = None
    blk: BlkDevice
    writethrough: bool
    always_translated: bool = False
    required: int = 0
    inflight: Area | None = None
    log: Mapping | None = None

    def admit(self, place: Place, base: int | None) -> Place:
        """
        Return where a ring starts, in the format of its driver, if it can.

        Args:
            place: Where it is said to be.
            base: Where it is to go on; None: where a new ring does.

        Raises:
            Refused: It cannot; nothing has changed.
        """
        if missing := self.required & ~self.features:
            raise Refused(
                EINVAL,
                f"ring {place.index} does not start: the driver has not acked feature bits "
                f"{missing:#x} (VERSION_1), which confidential require asks for",
            )
        started = place.started(packed=self.packed)
        if base is not None:
            check_base(base, started)
        if not self.translates(started.layout()):
            started.pieces(self.space)
        return started

    @property
    def packed(self) -> bool:
        """Whether its format is the packed one."""
        return bool(self.features & F_RING_PACKED)

    def dirty_log(self, used_gpa: int | None) -> DirtyLog | None:
        """
        Return what its queue marks.

        Args:
            used_gpa: Where the used ring is logged; see `DirtyLog`.
        """
        if self.log is None:
            return None
        return DirtyLog(
            address=self.log.address,
            length=self.log.length,
            regions=log_regions(self.space.table),
            used_gpa=used_gpa,
        )

    def translates(self, parts: Sequence[Part]) -> bool:
        """
        Tell whether a ring goes through the IOMMU, by where it is.

        crosvm acks ACCESS_PLATFORM for a protected guest, and goes on to send its own addresses.

        Args:
            parts: Its own, as `layout` returns them.
        """
        return self.translated is not None and (
            self.always_translated or any(self.space.table.at_uva(at) is None for at, *_ in parts)
        )
