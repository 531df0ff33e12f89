"""What the control plane says about a queue while it owns the ring."""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from vhostblk.blk.request import Rules
from vhostblk.engine.api import Piece
from vhostblk.engine.reference.inflight import MOST
from vhostblk.engine.reference.inflight_packed import PackedRegion, packed_bytes
from vhostblk.engine.reference.inflight_split import SplitRegion, split_bytes
from vhostblk.engine.reference.memory import GuestMemory, Part
from vhostblk.engine.reference.packed import PackedRing
from vhostblk.engine.reference.ring import Layout, Ring
from vhostblk.engine.reference.split import SplitRing
from vhostblk.errors import Refused
from vhostblk.spec.virtio_ring import (
    AVAIL_ELEM_SIZE,
    AVAIL_HEADER_SIZE,
    DESC_SIZE,
    EVENT_SIZE,
    F_IN_ORDER,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    MAX_QUEUE_SIZE,
    PACKED_EVENT_SIZE,
    USED_ELEM_SIZE,
    USED_HEADER_SIZE,
)

_REGION_ALIGN = 8
_ONE = (1).to_bytes(8, "little")


class Line:
    """An eventfd the front-end gave us, or none; it may be no eventfd at all."""

    def __init__(self) -> None:
        self.fd: int | None = None
        self.deaf = False
        """Reading it makes no sense: it would be readable for ever."""

    def put(self, fd: int | None) -> None:
        """Take over *fd*, close the one before."""
        if fd is not None:
            os.set_blocking(fd, False)
        if self.fd is not None:
            os.close(self.fd)
        self.fd = fd
        self.deaf = False

    def write(self) -> bool:
        """Signal whoever holds the other end; return whether there is one."""
        if self.fd is None:
            return False
        with suppress(OSError):  # full is signalled; anything else is the front-end's affair
            os.write(self.fd, _ONE)
        return True

    def read(self) -> bool:
        """Take what was signalled; return whether anything was."""
        if self.fd is None:
            return False
        try:
            got = bool(os.read(self.fd, len(_ONE)))
        except BlockingIOError:
            return False
        except OSError:
            got = False
        self.deaf = not got
        return got


@dataclass(frozen=True, slots=True)
class Place:
    """Where a ring lives."""

    size: int
    desc: Part
    avail: Part
    used: Part


@dataclass(slots=True)
class Settings:
    """Everything a visit of the worker needs to know."""

    memory: GuestMemory = field(default_factory=GuestMemory)
    place: Place | None = None
    inflight: tuple[Piece, int] | None = None
    rules: Rules | None = None
    features: int = 0
    enabled: bool = False
    greet: bool = False
    kick: Line = field(default_factory=Line)
    call: Line = field(default_factory=Line)
    err: Line = field(default_factory=Line)

    def lines(self) -> tuple[Line, ...]:
        """Return the eventfds."""
        return (self.kick, self.call, self.err)

    def set_ring(
        self, size: int, desc: Sequence[Piece], avail: Sequence[Piece], used: Sequence[Piece]
    ) -> None:
        """
        Say where the ring lives.

        Raises:
            Refused: Its size is none.
        """
        if not 1 <= size <= MAX_QUEUE_SIZE:
            raise Refused(errno.EINVAL, f"{size} is no ring size up to {MAX_QUEUE_SIZE}")
        self.place = Place(size, Part(desc), Part(avail), Part(used))

    def set_inflight(self, memory: Piece | None, size: int) -> None:
        """
        Say where what is taken is noted, for rings of up to *size*.

        Raises:
            Refused: There is no region at such an address, or of that size.
        """
        if memory is not None and (memory[0] % _REGION_ALIGN or not 1 <= size <= MOST):
            raise Refused(errno.EINVAL, f"no inflight region is at {memory[0]:#x} for {size}")
        self.inflight = None if memory is None else (memory, size)

    def _check_region(self, size: int) -> None:
        if self.inflight is None:
            return
        (_, length), entries = self.inflight
        needed = packed_bytes(entries) if self.packed else split_bytes(entries)
        if entries < size or length < needed:
            raise Refused(
                errno.EINVAL,
                f"an inflight region of {length} bytes for {entries}, for a ring of {size}",
            )

    @property
    def packed(self) -> bool:
        """Return whether the ring is a packed one."""
        return bool(self.features & F_RING_PACKED)

    @property
    def in_order(self) -> bool:
        """Return whether chains are given back in the order they were taken."""
        return bool(self.features & F_IN_ORDER)

    def layout(self) -> Layout:
        """
        Return what a run needs to know of the ring.

        Raises:
            Refused: Something is not known, or not as the format has it.
        """
        place = self.place
        if place is None:
            raise Refused(errno.EINVAL, "a ring without addresses cannot run")
        if self.rules is None:
            raise Refused(errno.EINVAL, "a ring without a device cannot run")
        if self.packed:
            _check_packed(place)
        else:
            _check_split(place)
        return Layout(
            size=place.size,
            desc=place.desc,
            avail=place.avail,
            used=place.used,
            indirect=bool(self.features & F_INDIRECT_DESC),
            in_order=self.in_order,
        )

    def open_ring(self, base: int) -> Ring:
        """
        Make the ring these settings describe.

        Raises:
            Refused: They do not, or *base* is none of it.
        """
        layout = self.layout()
        self._check_region(layout.size)
        if self.packed:
            packed = PackedRegion(*self.inflight) if self.inflight else None
            return PackedRing(layout, base, packed)
        split = SplitRegion(*self.inflight) if self.inflight else None
        return SplitRing(layout, base, split)


def _check_split(place: Place) -> None:
    size = place.size
    if size.bit_count() != 1:
        raise Refused(errno.EINVAL, f"a split ring of {size} is no power of two")
    _check_length("descriptor table", place.desc, DESC_SIZE * size)
    _check_length(
        "avail ring", place.avail, AVAIL_HEADER_SIZE + AVAIL_ELEM_SIZE * size + EVENT_SIZE
    )
    _check_length("used ring", place.used, USED_HEADER_SIZE + USED_ELEM_SIZE * size + EVENT_SIZE)


def _check_packed(place: Place) -> None:
    _check_length("descriptor ring", place.desc, DESC_SIZE * place.size)
    _check_length("driver's event suppression", place.avail, PACKED_EVENT_SIZE)
    _check_length("device's event suppression", place.used, PACKED_EVENT_SIZE)


def _check_length(what: str, part: Part, needed: int) -> None:
    if part.length < needed:
        raise Refused(errno.EINVAL, f"the {what} has {part.length} bytes, it needs {needed}")
