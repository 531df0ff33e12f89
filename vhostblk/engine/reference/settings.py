"""What the control plane says about a queue while it owns the ring."""

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from vhostblk.blk.request import Rules
from vhostblk.engine.api import Piece
from vhostblk.engine.reference.memory import GuestMemory, Part
from vhostblk.engine.reference.ring import Position, SplitRing
from vhostblk.errors import Refused
from vhostblk.spec.virtio_ring import (
    AVAIL_ELEM_SIZE,
    AVAIL_HEADER_SIZE,
    DESC_SIZE,
    EVENT_SIZE,
    F_INDIRECT_DESC,
    MAX_QUEUE_SIZE,
    USED_ELEM_SIZE,
    USED_HEADER_SIZE,
)

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
            Refused: Its size is none, or a part is too short.
        """
        if size.bit_count() != 1 or size > MAX_QUEUE_SIZE:
            raise Refused(errno.EINVAL, f"{size} is no ring size up to {MAX_QUEUE_SIZE}")
        place = Place(size, Part(desc), Part(avail), Part(used))
        _check_length("descriptor table", place.desc, DESC_SIZE * size)
        _check_length(
            "avail ring", place.avail, AVAIL_HEADER_SIZE + AVAIL_ELEM_SIZE * size + EVENT_SIZE
        )
        _check_length(
            "used ring", place.used, USED_HEADER_SIZE + USED_ELEM_SIZE * size + EVENT_SIZE
        )
        self.place = place

    def check(self) -> Place:
        """
        Return where the ring lives, when everything is known that a run needs.

        Raises:
            Refused: It is not.
        """
        if self.place is None:
            raise Refused(errno.EINVAL, "a ring without addresses cannot run")
        if self.rules is None:
            raise Refused(errno.EINVAL, "a ring without a device cannot run")
        return self.place

    def open_ring(self, position: Position) -> SplitRing:
        """Make the ring these settings describe."""
        place = self.check()
        return SplitRing(
            size=place.size,
            desc=place.desc,
            avail=place.avail,
            used=place.used,
            position=position,
            indirect=bool(self.features & F_INDIRECT_DESC),
        )


def _check_length(what: str, part: Part, needed: int) -> None:
    if part.length < needed:
        raise Refused(errno.EINVAL, f"the {what} has {part.length} bytes, it needs {needed}")
