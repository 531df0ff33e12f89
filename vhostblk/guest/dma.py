"""
How a driver lets the device see memory: the kernel's DMA interface, as far as virtio needs it.

A driver maps what it wants the device to read or write and is told an address for the descriptor;
when the device is done, it unmaps.  Rings are allocated, not mapped.  In an ordinary machine the
device sees all memory, so mapping does nothing; ``bounce`` and ``firmware`` are what confidential
guests do.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.shape import RingAddresses, RingShape, allocate_ring

CANARY = 0xD5
"""What lies between mappings, where no device has any business."""
COHERENT_ALIGN = 64
"""Where the used ring begins in one piece with the others, as Linux has it on PCI."""


class BounceError(GuestError):
    """The device wrote where it must not."""


class UnderstatedError(BounceError):
    """The device wrote more than it says, which it may only where a request has failed."""


class Dma(Protocol):
    """Mappings and rings."""

    @property
    def max_mapping(self) -> int | None:
        """Return how many bytes one mapping can have; ``None``: any number."""

    def map(self, gpa: int, length: int, *, writable: bool, cpu: int = 0) -> int:
        """
        Let the device see a buffer.

        Args:
            gpa: Where it is.
            length: Bytes, at least 1.
            writable: The device may write it (else: read it).
            cpu: Whose bounce area to use.

        Returns:
            The address for the descriptor.

        Raises:
            PoolFullError: No room until something else is unmapped.
            GuestError: It cannot be mapped in one piece.
        """

    def unmap(self, address: int, written: int, *, spare: int = 0) -> None:
        """
        Take a buffer back, with what the device wrote.

        Args:
            address: Of ``map``.
            written: Bytes the device says it wrote there.
            spare: Bytes at the end that it may write without saying so: the status.

        Raises:
            BounceError: It wrote more, or elsewhere; the buffer is taken back all the same.
        """

    def drop(self, address: int) -> None:
        """Take a buffer back that the device may still be using, and look at nothing."""

    def allocate_ring(self, shape: RingShape) -> RingAddresses:
        """Find memory for a ring that driver and device see at once."""

    def free_ring(self, addresses: RingAddresses) -> None:
        """Give the memory of a ring back."""

    def close(self) -> None:
        """Give everything else back; nothing is mapped any more.  Again is harmless."""


class Direct:
    """
    The device sees all memory, or so the driver believes.

    Args:
        memory: The guest's.
        ring_align: What the parts of rings begin at a multiple of; PAGE for pages of their own.
    """

    def __init__(self, memory: GuestMemory, *, ring_align: int = 1) -> None:
        self._memory = memory
        self._ring_align = ring_align

    @property
    def max_mapping(self) -> int | None:
        """Return ``None``: there is no limit."""
        return None

    def map(self, gpa: int, length: int, *, writable: bool, cpu: int = 0) -> int:  # noqa: ARG002 - it is a Dma
        """Return *gpa*."""
        return gpa

    def unmap(self, address: int, written: int, *, spare: int = 0) -> None:
        """Do nothing."""

    def drop(self, address: int) -> None:
        """Do nothing."""

    def allocate_ring(self, shape: RingShape) -> RingAddresses:
        """Find room for its parts, apart from each other."""
        return allocate_ring(self._memory, shape, align=self._ring_align)

    def free_ring(self, addresses: RingAddresses) -> None:
        """Free its parts."""
        for gpa in (addresses.desc, addresses.avail, addresses.used):
            self._memory.free(gpa)

    def close(self) -> None:
        """Do nothing."""


class Marked:
    """
    A driver that forgets to take the C-bit (or TDX's shared bit) out of addresses.

    Args:
        dma: What it would do otherwise.
        bit: Number of the address bit.
    """

    def __init__(self, dma: Dma, bit: int) -> None:
        self._dma = dma
        self._mark = 1 << bit

    @property
    def max_mapping(self) -> int | None:
        """Return the limit."""
        return self._dma.max_mapping

    def map(self, gpa: int, length: int, *, writable: bool, cpu: int = 0) -> int:
        """Map, and return the address with the bit."""
        return self._dma.map(gpa, length, writable=writable, cpu=cpu) | self._mark

    def unmap(self, address: int, written: int, *, spare: int = 0) -> None:
        """Unmap the address without the bit."""
        self._dma.unmap(address & ~self._mark, written, spare=spare)

    def drop(self, address: int) -> None:
        """Drop the address without the bit."""
        self._dma.drop(address & ~self._mark)

    def allocate_ring(self, shape: RingShape) -> RingAddresses:
        """Allocate; the front-end translates these addresses, so they have no bit."""
        return self._dma.allocate_ring(shape)

    def free_ring(self, addresses: RingAddresses) -> None:
        """Free."""
        self._dma.free_ring(addresses)

    def close(self) -> None:
        """Close."""
        self._dma.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """
    A buffer and its stand-in.

    Args:
        memory: The guest's.
        orig: The buffer.
        address: The stand-in, in shared memory.
        length: Bytes.
        writable: The device may write it.
        room: First and last byte, plus one, of all that belongs to the stand-in alone.
        before: What the stand-in held when the device got it.
    """

    memory: GuestMemory
    orig: int
    address: int
    length: int
    writable: bool
    room: tuple[int, int]
    before: bytes

    @classmethod
    def made(  # noqa: PLR0913 - all of them say where
        cls,
        memory: GuestMemory,
        orig: int,
        address: int,
        length: int,
        *,
        writable: bool,
        room: tuple[int, int],
    ) -> "Copy":
        """Copy the buffer (Linux does so in either direction), with canaries around it."""
        before = memory.read(orig, length)
        lead, tail = address - room[0], room[1] - address - length
        memory.write(room[0], bytes([CANARY]) * lead + before + bytes([CANARY]) * tail)
        return cls(
            memory=memory,
            orig=orig,
            address=address,
            length=length,
            writable=writable,
            room=room,
            before=before,
        )

    def sync_for_cpu(self) -> None:
        """Copy what the device wrote to the buffer, and let the stand-in be."""
        if self.writable:
            self.memory.write(self.orig, self.memory.read(self.address, self.length))

    def sync_for_device(self) -> "Copy":
        """Copy the buffer to the stand-in once more; return what is known of it now."""
        before = self.memory.read(self.orig, self.length)
        self.memory.write(self.address, before)
        return replace(self, before=before)

    def take_back(self, written: int, spare: int) -> BounceError | None:
        """
        Copy back what the device wrote.

        Args:
            written: Bytes it says it wrote.
            spare: Bytes at the end that it may write without saying so.

        Returns:
            What is wrong, if it wrote beyond that.
        """
        start, end = self.room
        room = self.memory.read(start, end - start)
        first = self.address - start
        after = room[first : first + self.length]
        if self.writable:
            self.memory.write(self.orig, after)
        kept = slice(min(written, self.length), self.length - spare)
        around = room[:first] + room[first + self.length :]
        if around.strip(bytes([CANARY])):
            return BounceError(f"the device wrote outside the {self}")
        if not self.writable and after != self.before:
            return BounceError(f"the device wrote into the {self}")
        if self.writable and after[kept] != self.before[kept]:
            return UnderstatedError(
                f"the device wrote more than the {written} bytes it claims into the {self}"
            )
        return None

    def __str__(self) -> str:
        what = "writable" if self.writable else "read-only"
        return f"{what} buffer of {self.length} bytes at GPA {self.address:#x}"


class CoherentRings:
    """
    Rings of a confidential guest: each in pages of its own, shared for as long as it lives.

    Args:
        memory: The guest's.
        exposed: GPAs of pages the device was told of; added to.
    """

    def __init__(self, memory: GuestMemory, exposed: set[int]) -> None:
        self._memory = memory
        self._exposed = exposed
        self._sizes: dict[int, int] = {}

    def allocate(self, shape: RingShape) -> RingAddresses:
        """Allocate one piece, share it, clear it."""
        avail = shape.desc_bytes
        used = _up(avail + shape.avail_bytes, COHERENT_ALIGN)
        length = _up(used + shape.used_bytes, PAGE)
        gpa = share_pages(self._memory, length)
        self._memory.write(gpa, bytes(length))
        self._sizes[gpa] = length
        self._exposed.update(range(gpa, gpa + length, PAGE))
        return RingAddresses(desc=gpa, avail=gpa + avail, used=gpa + used)

    def free(self, addresses: RingAddresses) -> None:
        """Take its pages back."""
        unshare_pages(self._memory, addresses.desc, self._sizes.pop(addresses.desc))


def share_pages(memory: GuestMemory, length: int) -> int:
    """
    Allocate pages and share them.

    Args:
        memory: The guest's.
        length: Bytes, whole pages.

    Returns:
        GPA of the first; their contents are undefined.

    Raises:
        GuestError: No room.
    """
    gpa = memory.allocate(length, align=PAGE)
    memory.set_shared(gpa, length)
    return gpa


def unshare_pages(memory: GuestMemory, gpa: int, length: int) -> None:
    """Take back what ``share_pages`` returned."""
    memory.set_private(gpa, length)
    memory.free(gpa)


def pages_of(address: int, length: int) -> range:
    """Return the GPAs of the pages that the range touches."""
    return range(address - address % PAGE, address + length, PAGE)


def _up(value: int, align: int) -> int:
    return -(-value // align) * align
