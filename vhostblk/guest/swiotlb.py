"""
Which slots of a bounce pool a mapping gets: Linux's swiotlb, as arithmetic without memory.

A pool is cut into slots of 2 KiB and sets of 128 slots; a mapping is a run of slots within one set.
The pool is divided among areas, one for each CPU or so.  Each area looks for room where it found
some last (the rotor), so addresses rise and wrap around.  Each free slot knows how many free slots
follow it up to the end of its set, itself included.
"""

from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE

SLOT = 2048
SET = 128
"""Slots no mapping reaches over the end of."""


class PoolFullError(GuestError):
    """No run of slots is free that is long enough; a driver tries again later."""


def max_mapping(min_align_mask: int = 0) -> int:
    """
    Tell how long a mapping can be.

    Args:
        min_align_mask: Low address bits a device wants preserved.

    Returns:
        Bytes.
    """
    return SET * SLOT - -(-min_align_mask // SLOT) * SLOT


class Pool:
    """
    The slots of one pool.

    Args:
        start: Its address, of a page.
        nslabs: How many slots.
        areas: A power of two; each area is whole sets, unless there is only one.
        min_align_mask: Low address bits that a mapping shares with what it stands for.

    Raises:
        GuestError: The numbers do not fit together.
    """

    def __init__(self, start: int, nslabs: int, *, areas: int = 1, min_align_mask: int = 0) -> None:
        if areas < 1 or areas & (areas - 1) or (areas > 1 and nslabs % (areas * SET)):
            raise GuestError(f"{nslabs} slots cannot be divided among {areas} areas")
        if start % PAGE or nslabs < 1:
            raise GuestError(f"a bounce pool of {nslabs} slots cannot be at {start:#x}")
        self.start = start
        self.nslabs = nslabs
        self._area = nslabs // areas
        self._mask = min_align_mask
        self._free = [min(SET - i % SET, nslabs - i) for i in range(nslabs)]
        self._rotors = [0] * areas
        self._used = [0] * areas
        self._runs: dict[int, int] = {}

    @property
    def used(self) -> int:
        """Return how many slots are in use."""
        return sum(self._used)

    def holds(self, address: int) -> bool:
        """Tell whether *address* is in this pool."""
        return self.start <= address < self.start + self.nslabs * SLOT

    def is_free(self, index: int) -> bool:
        """Tell whether slot *index* is in no mapping."""
        return self._free[index] > 0

    def take(self, orig: int, size: int, *, cpu: int = 0) -> int | None:
        """
        Find room for a mapping and take it, in the CPU's own area if there is any.

        Args:
            orig: Address of what is mapped.
            size: Bytes.
            cpu: Which CPU asks.

        Returns:
            The address in the pool; ``None`` if nothing is free.
        """
        areas = len(self._rotors)
        offset = orig & self._mask & (SLOT - 1)
        count = -(-(size + offset) // SLOT)
        for i in range(areas):
            area = (cpu + i) % areas
            index = self._search(area, orig, size, count)
            if index is not None:
                self._occupy(area, index, count)
                return self.start + index * SLOT + offset
        return None

    def give_back(self, address: int) -> range:
        """
        Free a mapping.

        Args:
            address: Of ``take``.

        Returns:
            Indices of the slots that are free again.
        """
        index = (address - self.start) // SLOT
        count = self._runs.pop(index)
        end = index + count
        self._used[index // self._area] -= count
        behind = self._free[end] if end % SET and end < self.nslabs else 0
        self._free[index:end] = range(behind + count, behind, -1)
        self._count_down(index)
        return range(index, end)

    def _search(self, area: int, orig: int, size: int, count: int) -> int | None:
        if count > self._area - self._used[area]:
            return None
        whole = SLOT - 1
        if size >= PAGE and not self._mask:
            whole |= PAGE - 1  # what is a page or longer begins on a page
        same = self._mask & ~whole
        stride = (max(whole, same) // SLOT) + 1
        at, seen = self._rotors[area], 0
        while seen < self._area:
            index = area * self._area + at
            address = self.start + index * SLOT
            aligned = not address & whole and address & same == orig & same
            if aligned and self._free[index] >= count:
                return index
            step = stride if aligned else 1
            at = self._wrap(at + step)
            seen += step
        return None

    def _occupy(self, area: int, index: int, count: int) -> None:
        self._free[index : index + count] = [0] * count
        self._count_down(index)
        self._runs[index] = count
        self._used[area] += count
        self._rotors[area] = self._wrap(index - area * self._area + count)

    def _count_down(self, index: int) -> None:
        # The free slots in front of *index*, back to the start of the set or to one in use.
        count = self._free[index]
        while index % SET and self._free[index - 1]:
            index -= 1
            count += 1
            self._free[index] = count

    def _wrap(self, index: int) -> int:
        return index if index < self._area else 0
