"""
Checksums by block: what `verify` knows of a disk.

A checksum is the CRC-32 of a block; 0 stands for none, and a block whose CRC-32 is 0 has 1.  They
are in memory, and in a file as well if there is one: a header of 4096 bytes and four bytes for
each block, little-endian, so that a file is as sparse as what was written.
"""

import logging
import mmap
import struct
import zlib
from array import array
from dataclasses import dataclass
from enum import IntEnum

from vhostblk.disk.store import Store, boot_id
from vhostblk.errors import VhostBlkError

log = logging.getLogger(__name__)

HEADER = 4096
CHUNK = 1 << 20
"""Bytes of a disk that are looked at together."""

_MAGIC = b"vhostsum"
_VERSION = 1
_LAYOUT = struct.Struct("<8sIIIxxxxQ16s")
_CRC = struct.Struct("<I")
_NORESERVE = 0x4000  # <asm-generic/mman.h>, as in vhostblk.disk.memory
_CLEAR = 1 << 16


class State(IntEnum):
    """How a file was left."""

    CLOSED = 0
    IN_USE = 1


@dataclass(frozen=True, slots=True)
class Header:
    """
    What a file begins with.

    Args:
        state: How it was left.
        block: Bytes of a block.
        size: Bytes of the disk.
        boot: In which run of the kernel it was used.
    """

    state: State
    block: int
    size: int
    boot: bytes

    def pack(self) -> bytes:
        """Return its sector."""
        text = _LAYOUT.pack(_MAGIC, _VERSION, self.state, self.block, self.size, self.boot)
        return (text + _CRC.pack(zlib.crc32(text))).ljust(512, b"\0")


def checksum(data: bytes | bytearray | memoryview) -> int:
    """Return that of a block."""
    return zlib.crc32(data) or 1


class Sums:
    """
    The checksums of a disk.

    Args:
        size: Bytes of the disk.
        block: Bytes of a block.
        store: Where they are kept as well; None: nowhere.
    """

    def __init__(self, size: int, block: int, store: Store | None) -> None:
        self.block = block
        self.store = store
        self.size = size
        self.chunks: set[int] = set()
        """Pieces of `CHUNK` bytes of which anything may be known."""
        self.handed_over = False
        self._now = _Table(size // block)
        self._before = _Table(size // block)

    # ---- blocks -----------------------------------------------------------------------------

    def known(self, first: int, end: int) -> memoryview:
        """Return the checksums of blocks."""
        return self._now.view[first:end]

    def before(self, block: int) -> int:
        """Return the checksum a block had before its last write."""
        return self._before.view[block]

    def begin(self, first: int, end: int) -> None:
        """Know nothing of blocks while they are written."""
        self.handed_over = False  # whoever should have gone on has not
        if end - first <= _CLEAR:
            self._before.view[first:end] = self._now.view[first:end]
        self._now.clear(first, end)
        if self.store is not None:
            self.store.zero(HEADER + 4 * first, 4 * (end - first), unmap=True)

    def put(self, first: int, sums: "array[int]") -> None:
        """Know blocks, whose write has ended."""
        end = first + len(sums)
        self._now.view[first:end] = memoryview(sums)
        self._note(first, end)
        if self.store is not None:
            self.store.write(HEADER + 4 * first, [memoryview(sums).cast("B")])

    def fill(self, first: int, end: int, value: int) -> None:
        """Know blocks that are all alike."""
        for at in range(first, end, _CLEAR):
            self.put(at, array("I", [value]) * min(_CLEAR, end - at))

    def where(self, value: int) -> int | None:
        """Find a block that should have this checksum."""
        per_chunk = CHUNK // self.block
        for chunk in sorted(self.chunks):
            first = chunk * per_chunk
            for i, one in enumerate(self._now.view[first : first + per_chunk]):
                if one == value:
                    return first + i
        return None

    def _note(self, first: int, end: int) -> None:
        per_chunk = CHUNK // self.block
        self.chunks.update(range(first // per_chunk, (end - 1) // per_chunk + 1))

    # ---- all of it --------------------------------------------------------------------------

    def forget(self) -> None:
        """Know nothing any more."""
        for table in (self._now, self._before):
            table.resize(self.size // self.block, keep=False)
        self.chunks.clear()
        if self.store is not None:
            self.store.resize(HEADER)
            self.store.resize(self._length)

    def resize(self, size: int) -> None:
        """Have another size."""
        self.size = size
        for table in (self._now, self._before):
            table.resize(size // self.block, keep=True)
        self.chunks = {chunk for chunk in self.chunks if chunk * CHUNK < size}
        if self.store is not None:
            self.store.resize(self._length)
            self._say(State.IN_USE)

    @property
    def _length(self) -> int:
        return HEADER + self.size // self.block * 4

    # ---- the file ---------------------------------------------------------------------------

    def load(self, header: Header | None) -> None:
        """
        Take what the file has, and use it from now on.

        Args:
            header: As it is there; None: it is new.
        """
        store = self.store
        assert store is not None, "there is a file"  # noqa: S101 - our own promise
        store.resize(max(store.length, self._length) if header else self._length)
        if header is not None and header.state is State.IN_USE and header.boot != boot_id():
            log.warning(
                "%s: the host has crashed since these checksums were written, and nobody knows "
                "which of the last writes the disk has: beginning anew",
                store.path,
            )
            self.forget()
        self.read_again()
        self._say(State.IN_USE)

    def read_again(self) -> None:
        """Read the file, which another process may have written."""
        store = self.store
        assert store is not None, "there is a file"  # noqa: S101 - our own promise
        for extent in store.extents(HEADER, self._length - HEADER):
            if extent.hole:
                continue
            first = (extent.offset - HEADER) // 4
            end = min(first + -(-extent.length // 4), self.size // self.block)
            with self._now.view[first:end].cast("B") as view:
                store.read(HEADER + 4 * first, [view])
            self._note(first, end)

    def close(self) -> None:
        """Let go of the file; it is true as long as nobody else changes the disk."""
        if self.store is not None:
            if not self.handed_over:
                self._say(State.CLOSED)
            self.store.close()
        for table in (self._now, self._before):
            table.close()

    def _say(self, state: State) -> None:
        assert self.store is not None, "there is a file"  # noqa: S101 - our own promise
        self.store.sync()
        header = Header(state, self.block, self.size, boot_id())
        self.store.write(0, [memoryview(header.pack())])
        self.store.sync()


class _Table:
    """Numbers of 32 bits in memory, which takes as much as is not 0."""

    def __init__(self, count: int) -> None:
        self._map, self.view = _memory(count)

    def clear(self, first: int, end: int) -> None:
        """Make a range 0."""
        for at in range(first, end, _CLEAR):
            stop = min(at + _CLEAR, end)
            self.view[at:stop] = memoryview(bytes(4 * (stop - at))).cast("I")

    def resize(self, count: int, *, keep: bool) -> None:
        """Have another count; those that are new are 0."""
        old_map, old = self._map, self.view
        self._map, self.view = _memory(count)
        if keep:
            both = min(count, len(old))
            for at in range(0, both, _CLEAR):
                stop = min(at + _CLEAR, both)
                piece = bytes(old[at:stop])
                if any(piece):
                    self.view[at:stop] = memoryview(piece).cast("I")
        old.release()
        old_map.close()

    def close(self) -> None:
        """Give the memory back."""
        self.view.release()
        self._map.close()


def _memory(count: int) -> "tuple[mmap.mmap, memoryview]":
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    memory = mmap.mmap(-1, 4 * count, flags=flags)
    return memory, memoryview(memory).cast("I")


def read_header(store: Store) -> Header | None:
    """
    Read the header of a file.

    Returns:
        None where nothing has been written yet.

    Raises:
        VhostBlkError: It is no such file.
    """
    text = bytearray(min(512, store.length))
    if text:
        store.read(0, [memoryview(text)])
    if not any(text):
        return None
    crc = zlib.crc32(text[: _LAYOUT.size])
    if (
        text[:8] != _MAGIC
        or len(text) < _LAYOUT.size + _CRC.size
        or _CRC.unpack_from(text, _LAYOUT.size) != (crc,)
    ):
        raise VhostBlkError(
            f"file={store.path}: it has no checksums, and is left as it is: name another, or a new "
            "one"
        )
    _, version, state, block, size, boot = _LAYOUT.unpack_from(text)
    if version != _VERSION:
        raise VhostBlkError(f"file={store.path}: of version {version}; this is for {_VERSION}")
    return Header(State(state), block, size, boot)


def checksums(data: bytes, block: int) -> "array[int]":
    """Return those of blocks."""
    with memoryview(data) as view:
        pieces = (view[at : at + block] for at in range(0, len(data), block))
        return array("I", map(checksum, pieces))
