"""
Bounced I/O, as Linux does it in every confidential guest: mappings are copies in a shared pool.

On top of the copying, everything a device must not do to the pool is looked for at every unmap: a
byte written between mappings, into what it may only read, or beyond what it said it wrote; and at
every map, that nothing was written into the free slots the mapping gets.

The pool's own pages are shared when it is made but not touched until a mapping lands on them.  So
in the modes ``snp`` and ``tdx`` even a back-end that strays within the pool shows in the hole map.
"""

from dataclasses import dataclass

from vhostblk.guest.dma import (
    CANARY,
    BounceError,
    CoherentRings,
    Copy,
    pages_of,
    share_pages,
    unshare_pages,
)
from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.shape import RingAddresses, RingShape
from vhostblk.guest.swiotlb import SLOT, Pool, PoolFullError, max_mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class SwiotlbOptions:
    """
    The pool, as ``swiotlb=`` on a kernel's command line would have it.

    Args:
        nslabs: Slots of 2 KiB.
        areas: Divisions of the pool, a power of two.
        min_align_mask: Low address bits that are kept; 0 for virtio, 4095 for NVMe.
        dynamic: A full pool gets help (CONFIG_SWIOTLB_DYNAMIC): first a transient pool for the one
            mapping, shared and taken back with it, then another lasting one.
        grow: Slots of a lasting pool that is added.
    """

    nslabs: int = 2048
    areas: int = 1
    min_align_mask: int = 0
    dynamic: bool = False
    grow: int = 512


class Bounced:
    """
    Linux's DMA interface in a confidential guest.

    Args:
        memory: The guest's.
        options: Of the pool.

    Raises:
        GuestError: No room for the pool, or it is impossible.
    """

    def __init__(self, memory: GuestMemory, options: SwiotlbOptions) -> None:
        self._memory = memory
        self._options = options
        self._exposed: set[int] = set()
        self._rings = CoherentRings(memory, self._exposed)
        self._live: dict[int, tuple[_SharedPool, Copy]] = {}
        self._pools = [_SharedPool(memory, options.nslabs, options)]
        self._wants_growth = False
        self.high_water = 0
        """Most slots that were ever in use."""

    @property
    def exposed(self) -> frozenset[int]:
        """Return the GPAs of all pages that any ring or descriptor ever named."""
        return frozenset(self._exposed)

    @property
    def used(self) -> int:
        """Return how many slots are in use."""
        return sum(pool.slots.used for pool in self._pools)

    @property
    def pools(self) -> tuple[range, ...]:
        """Return the addresses of all pools, transient ones included."""
        return tuple(pool.span for pool in self._pools)

    @property
    def max_mapping(self) -> int | None:
        """Return the bytes of a slot set, less what alignment may take."""
        return max_mapping(self._options.min_align_mask)

    def map(self, gpa: int, length: int, *, writable: bool, cpu: int = 0) -> int:
        """Copy a buffer into the pool; see ``Dma.map``."""
        if length > max_mapping(self._options.min_align_mask):
            raise GuestError(f"a mapping of {length} bytes is longer than a set of bounce slots")
        pool, address = self._find(gpa, length, cpu)
        room = pool.occupy(address, length)
        copy = Copy.made(self._memory, gpa, address, length, writable=writable, room=room)
        self._live[address] = (pool, copy)
        self._exposed.update(pages_of(address, length))
        self.high_water = max(self.high_water, self.used)
        return address

    def unmap(self, address: int, written: int, *, spare: int = 0) -> None:
        """Copy back and look for what the device must not have done; see ``Dma.unmap``."""
        pool, copy = self._live.pop(address)
        complaint = copy.take_back(written, spare)
        pool.release(address, clean=True)
        self._retire(pool)
        if complaint is not None:
            raise complaint

    def sync_for_cpu(self, address: int) -> None:
        """Copy back what the device has written so far; the mapping stays (dma_sync_single)."""
        self._live[address][1].sync_for_cpu()

    def sync_for_device(self, address: int) -> None:
        """Show the device what the buffer holds by now; the mapping stays."""
        pool, copy = self._live[address]
        self._live[address] = pool, copy.sync_for_device()

    def drop(self, address: int) -> None:
        """Take slots back unseen; see ``Dma.drop``."""
        pool, _ = self._live.pop(address)
        pool.release(address, clean=False)
        self._retire(pool)

    def allocate_ring(self, shape: RingShape) -> RingAddresses:
        """Allocate coherent memory; it is not in the pool."""
        return self._rings.allocate(shape)

    def free_ring(self, addresses: RingAddresses) -> None:
        """Free coherent memory."""
        self._rings.free(addresses)

    def recycle(self) -> int:
        """
        Take the pages of lasting pools that hold no mapping back, and share them again.

        The host loses their contents and, with SEV-SNP and TDX, the pages themselves, while
        requests may be in flight on others.

        Returns:
            How many pages.
        """
        return sum(pool.recycle() for pool in self._pools if not pool.transient)

    def close(self) -> None:
        """Take the pools back."""
        while self._pools:
            self._pools.pop().close()

    def _find(self, gpa: int, length: int, cpu: int) -> tuple["_SharedPool", int]:
        if self._wants_growth:
            self._wants_growth = False
            self._pools.append(_SharedPool(self._memory, self._options.grow, self._options))
        for pool in self._pools:
            address = None if pool.transient else pool.slots.take(gpa, length, cpu=cpu)
            if address is not None:
                return pool, address
        if not self._options.dynamic:
            total = sum(pool.slots.nslabs for pool in self._pools)
            raise PoolFullError(
                f"the bounce pool is full: {length} bytes asked for, {total} slots, "
                f"{self.used} of them used"
            )
        return self._transient(gpa, length)

    def _transient(self, gpa: int, length: int) -> tuple["_SharedPool", int]:
        self._wants_growth = True
        offset = gpa & self._options.min_align_mask
        nslabs = -(-(offset + length) // SLOT)
        pool = _SharedPool(self._memory, nslabs, self._options, transient=True)
        address = pool.slots.take(gpa, length)
        if address is None:
            pool.close()
            raise PoolFullError(f"a transient pool of {nslabs} slots does not hold {length} bytes")
        self._pools.append(pool)
        return pool, address

    def _retire(self, pool: "_SharedPool") -> None:
        if pool.transient:
            self._pools.remove(pool)
            pool.close()


class _SharedPool:
    """
    A pool with its memory.

    Args:
        memory: The guest's.
        nslabs: Slots.
        options: The rest.
        transient: For one mapping only.
    """

    def __init__(
        self,
        memory: GuestMemory,
        nslabs: int,
        options: SwiotlbOptions,
        *,
        transient: bool = False,
    ) -> None:
        self._memory = memory
        self.transient = transient
        self._length = -(-nslabs * SLOT // PAGE) * PAGE
        self._gpa = share_pages(memory, self._length)
        self._clear(self._gpa, self._length)
        self.slots = Pool(
            self._gpa,
            nslabs,
            areas=1 if transient else options.areas,
            min_align_mask=options.min_align_mask,
        )
        # What each free slot holds: zero from the start, a canary when used before, or anything.
        self._filler: dict[int, int | None] = {}

    @property
    def span(self) -> range:
        """Return its addresses."""
        return range(self._gpa, self._gpa + self._length)

    def recycle(self) -> int:
        """Take back the pages that hold no mapping, and share them again; return how many."""
        done = 0
        for gpa in range(self._gpa, self._gpa + self._length, PAGE):
            first = (gpa - self._gpa) // SLOT
            slots = range(first, min(first + PAGE // SLOT, self.slots.nslabs))
            if not all(map(self.slots.is_free, slots)):
                continue
            self._memory.set_private(gpa, PAGE)
            self._memory.set_shared(gpa, PAGE)
            self._clear(gpa, PAGE)
            for index in slots:
                if self._filler.get(index) is not None:  # else somebody may still write there
                    del self._filler[index]
            done += 1
        return done

    def close(self) -> None:
        """Take the pages back."""
        unshare_pages(self._memory, self._gpa, self._length)

    def _clear(self, gpa: int, length: int) -> None:
        protection = self._memory.protection
        if protection.mode in ("plain", "sev") or not protection.punch:
            self._memory.write(gpa, bytes(length))  # others are zero, and untouched

    def occupy(self, address: int, length: int) -> tuple[int, int]:
        """
        Look whether the slots of a new mapping were left alone while they were free.

        Args:
            address: Of the mapping.
            length: Its bytes.

        Returns:
            Where its slots begin and end.

        Raises:
            BounceError: They were not; the mapping is given back.
        """
        first = (address - self._gpa) // SLOT
        last = (address + length - 1 - self._gpa) // SLOT
        for index in range(first, last + 1):
            at = self._gpa + index * SLOT
            filler = self._filler.get(index, 0)
            if filler is not None and self._memory.read(at, SLOT) != bytes([filler]) * SLOT:
                self.release(address, clean=True)
                raise BounceError(f"the device wrote into the free bounce slot at GPA {at:#x}")
        return self._gpa + first * SLOT, self._gpa + (last + 1) * SLOT

    def release(self, address: int, *, clean: bool) -> None:
        """Free the slots of a mapping; *clean*: and nobody writes them any more."""
        run = self.slots.give_back(address)
        start = self._gpa + run.start * SLOT
        if clean:
            self._memory.write(start, bytes([CANARY]) * SLOT * len(run))
        self._filler.update(dict.fromkeys(run, CANARY if clean else None))
