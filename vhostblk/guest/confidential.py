"""What makes a guest confidential: protected memory, bounced I/O, a front-end that knows."""

from dataclasses import dataclass, field, replace
from typing import Literal

from vhostblk.guest.bounce import Bounced, SwiotlbOptions
from vhostblk.guest.dma import Direct, Dma, Marked
from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import MIB, Region
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.negotiate import Wanted
from vhostblk.guest.pages import Mode, Protection
from vhostblk.guest.personality import QEMU_COCO, Personality
from vhostblk.spec import virtio_ring as vr

Kind = Literal["bounced", "sev", "snp", "tdx"]
MODES: dict[str, Mode] = {"bounced": "plain", "sev": "sev", "snp": "snp", "tdx": "tdx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidential:
    """
    A confidential guest.

    Args:
        kind: The technology; ``bounced``: an ordinary machine whose kernel bounces all I/O, as
            Linux does with ``swiotlb=force``.
        swiotlb: The bounce pool; ``None``: the driver knows nothing of it, and leaves rings and
            buffers where the host cannot read them.
        address_bit: Number of an address bit the driver sets in every descriptor by mistake; see
            ``pages.ADDRESS_BIT``.
        personality: The front-end.
        seed: Decides SEV's keys.
        spa_seed: Decides which frame of the machine holds which page.
    """

    kind: Kind
    swiotlb: SwiotlbOptions | None = field(default_factory=SwiotlbOptions)
    address_bit: int | None = None
    personality: Personality = QEMU_COCO
    seed: int = 0
    spa_seed: int = 0

    @classmethod
    def of(cls, chosen: "Kind | Confidential") -> "Confidential":
        """
        Make one of its name.

        Args:
            chosen: A kind, or one made already.

        Returns:
            It.

        Raises:
            GuestError: There is no such kind.
        """
        made = cls(kind=chosen) if isinstance(chosen, str) else chosen
        if made.kind not in MODES:
            raise GuestError(f"there is no confidential guest of kind {made.kind!r}")
        return made

    def wants(self, wanted: Wanted) -> Wanted:
        """Ask for bit 33 as well, through this front-end."""
        features = wanted.features | vr.F_ACCESS_PLATFORM
        return replace(wanted, features=features, personality=self.personality)

    def make_memory(self) -> GuestMemory:
        """Make 64 MiB of the right mode."""
        protection = Protection(mode=MODES[self.kind], seed=self.seed, spa_seed=self.spa_seed)
        return GuestMemory([Region(0, 64 * MIB)], mode=protection)

    def make_dma(self, memory: GuestMemory) -> Dma:
        """
        Make the driver's way to show the device memory.

        Args:
            memory: Of the mode that belongs to the kind.

        Returns:
            It.

        Raises:
            GuestError: The memory is of another mode, or has no room for the pool.
        """
        if memory.protection.mode != MODES[self.kind]:
            raise GuestError(f"{memory.protection.mode} memory for a guest of kind {self.kind}")
        dma: Dma = Direct(memory) if self.swiotlb is None else Bounced(memory, self.swiotlb)
        return dma if self.address_bit is None else Marked(dma, self.address_bit)
