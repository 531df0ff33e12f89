"""Guest memory, and a driver of our own arithmetic."""

import ctypes
import mmap
import os
import struct
from dataclasses import dataclass, field
from random import Random

from vhostblk.engine.api import Fault, Mailbox, Queue
from vhostblk.memory.space import Access, Segment
from vhostblk.spec.virtio_blk import RequestType

GPA = 0x4000_0000
MEMORY = 2 << 20
HEAP = 1 << 20
NEXT, WRITE, INDIRECT = 1, 2, 4
PENDING = 0xEE
"""What a status byte holds until the device writes it."""


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

    def segment(self, gpa: int = GPA, length: int = MEMORY, access: int = 3) -> Segment:
        return Segment(gpa, length, self.host + gpa - GPA, Access(access))

    def at(self, gpa: int) -> int:
        return self.host + gpa - GPA


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
    size: int
    desc: int
    avail: int
    used_ring: int
    kick: int
    call: int
    err: int
    broken: list[Fault | None] = field(default_factory=list)
    next_desc: int = 0
    avail_idx: int = 0
    dead: set[int] = field(default_factory=set)

    def put(self, index: int, desc: tuple[int, int, int, int], *, table: int = 0) -> None:
        """Write one descriptor (address, length, flags, next), of the ring or of *table*."""
        self.memory.write((table or self.desc) + 16 * index, struct.pack("<QIHH", *desc))

    def chain(self, *parts: tuple[int, int, int]) -> int:
        """Write a chain of (address, length, flags); return its head."""
        head = self.next_desc
        for i, (address, length, flags) in enumerate(parts):
            index = (head + i) % self.size
            more = NEXT if i + 1 < len(parts) else 0
            self.put(index, (address, length, flags | more, (index + 1) % self.size))
        self.next_desc = (head + len(parts)) % self.size
        return head

    def table(self, *parts: tuple[int, int, int]) -> tuple[int, int, int]:
        """Write an indirect table; return the part that names it."""
        address = self.memory.alloc(16 * len(parts))
        for i, (where, length, flags) in enumerate(parts):
            more = NEXT if i + 1 < len(parts) else 0
            self.put(i, (where, length, flags | more, i + 1), table=address)
        return (address, 16 * len(parts), INDIRECT)

    def offer(self, head: int) -> None:
        """Make a chain available, and kick."""
        slot = self.avail + 4 + 2 * (self.avail_idx % self.size)
        self.memory.write(slot, struct.pack("<H", head))
        self.set_avail_idx(self.avail_idx + 1)
        os.eventfd_write(self.kick, 1)

    def set_avail_idx(self, value: int) -> None:
        self.avail_idx = value & 0xFFFF
        self.memory.write(self.avail + 2, struct.pack("<H", self.avail_idx))

    def set_used_idx(self, value: int) -> None:
        self.memory.write(self.used_ring + 2, struct.pack("<H", value))

    def no_interrupt(self, *, quiet: bool) -> None:
        self.memory.write(self.avail, struct.pack("<H", quiet))

    def is_quiet(self) -> bool:
        return self.memory.read(self.avail, 1)[0] & 1 == 1

    def used_flags(self) -> int:
        return int.from_bytes(self.memory.read(self.used_ring, 2), "little")

    def used_idx(self) -> int:
        return int.from_bytes(self.memory.read(self.used_ring + 2, 2), "little")

    def used(self, since: int = 0) -> list[tuple[int, int]]:
        """Return (head, length) of every element the device published after *since*."""
        return [self.element(i) for i in range(since, self.used_idx())]

    def element(self, index: int) -> tuple[int, int]:
        """Return the used element (head, length) the device wrote at a used *index*."""
        raw = self.memory.read(self.used_ring + 4 + 8 * (index % self.size), 8)
        head, length = struct.unpack("<II", raw)
        return head, length

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
        asked = Asked(self, self.chain(*parts), parts[-1][0], since=self.used_idx())
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
        at = self.memory.at
        return {
            "desc": [(at(self.desc), 16 * self.size)],
            "avail": [(at(self.avail), 6 + 2 * self.size)],
            "used": [(at(self.used_ring), 6 + 8 * self.size)],
        }
