"""Guest memory, and a driver of our own arithmetic."""

import ctypes
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, Self

from vhostblk.engine.api import Fault, Mailbox, Queue
from vhostblk.memory.space import Access, Segment
from vhostblk.spec.virtio_blk import RequestType

GPA = 0x4000_0000
MEMORY = 2 << 20
HEAP = 1 << 20
NEXT, WRITE, INDIRECT = 1, 2, 4
PENDING = 0xEE
"""What a status byte holds until the device writes it."""
SKIPPED = -1
"""In place of a length: the chain was told of by the used element of a later one (IN_ORDER)."""

Entry = tuple[int, int, int, int | None]
"""A descriptor: address, length, flags, and its link (next, or buffer id) if not the right one."""
Used = list[tuple[int, int]]


def pattern(length: int) -> bytes:
    """Return bytes that look like no others, always the same."""
    return Random(length).randbytes(length)


class Memory:
    """Guest memory that begins at GPA."""

    def __init__(self) -> None:
        self.bytes = mmap.mmap(-1, MEMORY)
        self._anchor = ctypes.c_char.from_buffer(self.bytes)
        self.host = ctypes.addressof(self._anchor)
        self._heap = HEAP

    def alloc(self, length: int, *, align: int = 16) -> int:
        """Return the guest address of *length* fresh bytes."""
        start = -(-self._heap // align) * align
        self._heap = start + length
        assert self._heap <= MEMORY
        return GPA + start

    def reset(self) -> None:
        """Forget what was allocated."""
        self._heap = HEAP

    def read(self, gpa: int, length: int) -> bytes:
        return self.bytes[gpa - GPA : gpa - GPA + length]

    def write(self, gpa: int, data: bytes) -> None:
        self.bytes[gpa - GPA : gpa - GPA + len(data)] = data

    def read16(self, gpa: int) -> int:
        return int.from_bytes(self.read(gpa, 2), "little")

    def write16(self, gpa: int, value: int) -> None:
        self.write(gpa, struct.pack("<H", value))

    def segment(self, gpa: int = GPA, length: int = MEMORY, access: int = 3) -> Segment:
        return Segment(gpa, length, self.host + gpa - GPA, Access(access))

    def at(self, gpa: int) -> int:
        return self.host + gpa - GPA


class Ring(Protocol):
    """The driver's side of a ring format; `driver_split` and `driver_packed` are the two."""

    size: int

    def lay(self, entries: Sequence[Entry], name: int | None = None) -> int:
        """Write a chain; return its name, which is *name* if it must be."""
        ...

    def lay_table(self, address: int, entries: Sequence[Entry]) -> None:
        """Write an indirect table."""
        ...

    def offer(self, name: int) -> None:
        """Make a chain available that was written, be it under way already."""
        ...

    def offer_nobody(self) -> int:
        """Make a chain available whose name is out of range; return the name."""
        ...

    def adopt(self, memory: Memory) -> Self:
        """Return a driver of the same ring in a copy of its memory."""
        ...

    def jump(self, by: int) -> None:
        """Make available what was never written, or take back what was."""
        ...

    def room(self) -> int:
        """Return how many descriptors are free, as far as an honest driver counts."""
        ...

    def used(self) -> Used:
        """Return (name, length) of all that came back so far."""
        ...

    def begin(self) -> int:
        """Return where the ring began, on the wire: what a front-end says that knows no better."""
        ...

    def base(self, taken: int) -> int:
        """Return where the ring stands when so many chains were taken, on the wire."""
        ...

    def at(self, taken: int) -> int:
        """Return where the next chain is met when so many were taken: what faults name."""
        ...

    def begins(self, name: int) -> int:
        """Return where a chain that was written begins."""
        ...

    def no_interrupt(self, *, quiet: bool) -> None:
        """Say whether used chains are to be told of."""
        ...

    def is_quiet(self) -> bool:
        """Return what was said."""
        ...

    def silence(self) -> None:
        """Do what a device does that wants no kicks."""
        ...

    def wants_kicks(self) -> bool:
        """Say whether the device wants to be kicked."""
        ...

    def restart(self, size: int, avail: int, used: int) -> int:
        """Have an empty ring that stands somewhere, say at *avail*; return that on the wire."""
        ...

    def parts(self) -> dict[str, tuple[int, int]]:
        """Return guest address and bytes of the parts, for `Queue.set_ring`."""
        ...

    def span(self) -> tuple[int, int]:
        """Return where all of the ring lives: guest address, bytes."""
        ...

    def shared(self) -> tuple[int, int]:
        """Return where the device writes in an order of its own: guest address, bytes."""
        ...


@dataclass
class Asked:
    """A request that was made available; what became of it."""

    lane: "Lane"
    head: int
    status_at: int
    data_at: int = 0
    length: int = 0
    since: int = 0

    @property
    def status(self) -> int:
        return self.lane.memory.read(self.status_at, 1)[0]

    @property
    def data(self) -> bytes:
        return self.lane.memory.read(self.data_at, self.length)

    @property
    def used(self) -> int | None:
        """Bytes the device says it wrote; None: not given back."""
        return dict(self.lane.used(self.since)).get(self.head)


@dataclass
class Lane:
    """A queue and its driver."""

    memory: Memory
    queue: Queue
    ring: Ring
    kick: int
    call: int
    err: int
    acked: int
    broken: list[Fault | None] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.ring.size

    def chain(self, *parts: tuple[int, int, int]) -> int:
        """Write a chain of (address, length, flags); return its name."""
        return self.ring.lay(linked(parts))

    def table(self, *parts: tuple[int, int, int]) -> tuple[int, int, int]:
        """Write an indirect table; return the part that names it."""
        address = self.memory.alloc(16 * len(parts))
        self.ring.lay_table(address, linked(parts))
        return (address, 16 * len(parts), INDIRECT)

    def offer(self, name: int) -> None:
        """Make a chain available, and kick."""
        self.ring.offer(name)
        os.eventfd_write(self.kick, 1)

    def offer_nobody(self) -> int:
        """Make a chain available whose name is out of range, and kick; return the name."""
        name = self.ring.offer_nobody()
        os.eventfd_write(self.kick, 1)
        return name

    def used(self, since: int = 0) -> Used:
        """Return (name, length) of every chain that came back, but the first *since*."""
        return self.ring.used()[since:]

    def rings(self, fd: int) -> int:
        """Return how often an eventfd of ours was written since the last look."""
        try:
            return os.eventfd_read(fd)
        except BlockingIOError:
            return 0

    def header(self, kind: int, sector: int = 0) -> tuple[int, int, int]:
        """Write a request header; return the part that names it."""
        address = self.memory.alloc(16)
        self.memory.write(address, struct.pack("<IIQ", kind, 0, sector))
        return (address, 16, 0)

    def status(self) -> tuple[int, int, int]:
        """Return a part for a status byte that was not written yet."""
        address = self.memory.alloc(1)
        self.memory.write(address, bytes([PENDING]))
        return (address, 1, WRITE)

    def data(self, content: bytes, flags: int = 0) -> tuple[int, int, int]:
        address = self.memory.alloc(len(content), align=512)
        self.memory.write(address, content)
        return (address, len(content), flags)

    def ask(self, kind: int, sector: int = 0, *, out: bytes = b"", room: int = 0) -> Asked:
        """Make a whole request available: *out* for the device, *room* bytes for its answer."""
        parts = [self.header(kind, sector)]
        if out:
            parts.append(self.data(out))
        if room:
            parts.append(self.data(b"\xdd" * room, WRITE))
        parts.append(self.status())
        since = len(self.used())
        asked = Asked(self, self.chain(*parts), parts[-1][0], since=since)
        if room:
            asked.data_at, asked.length = parts[-2][0], room
        self.offer(asked.head)
        return asked

    def read(self, sector: int = 0, length: int = 512) -> Asked:
        return self.ask(RequestType.IN, sector, room=length)

    def write(self, sector: int = 0, out: bytes = b"w" * 512) -> Asked:
        return self.ask(RequestType.OUT, sector, out=out)

    @property
    def mailbox(self) -> Mailbox:
        box = self.queue.mailbox
        assert box is not None
        return box

    def place(self) -> dict[str, list[tuple[int, int]]]:
        """Return where the parts of the ring live, for `Queue.set_ring`."""
        parts = self.ring.parts().items()
        return {name: [(self.memory.at(gpa), length)] for name, (gpa, length) in parts}


def linked(parts: Sequence[tuple[int, int, int]]) -> list[Entry]:
    """Return the descriptors of a chain."""
    last = len(parts) - 1
    return [
        (at, length, flags | (NEXT * (i < last)), None)
        for i, (at, length, flags) in enumerate(parts)
    ]
