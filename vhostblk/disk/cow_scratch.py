"""
An open scratch file: its header, its maps and its blocks.

What changes a file is done in an order in which it can end anywhere: see "Scratch files" in the
explanations of durability.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from vhostblk.disk.api import Extent
from vhostblk.disk.cow_header import HEADER, Header, State, unpack
from vhostblk.disk.cow_map import Blocks, Map
from vhostblk.disk.store import Store, boot_id


class Scratch:
    """
    What a cow holds.  Made by `create` or `load`.

    Args:
        store: The file; closed by `close`.
        header: As it is there.
    """

    def __init__(self, store: Store, header: Header) -> None:
        self.store = store
        self.header = header
        self.map = Map(store, header.block)

    @property
    def block(self) -> int:
        """Bytes of a block."""
        return self.header.block

    @property
    def blocks(self) -> int:
        """How many the disk has."""
        return -(-self.header.size // self.block)

    def set_header(self, header: Header) -> None:
        """Have another header, stable, in one step."""
        self.store.write(0, [memoryview(header.pack())])
        self.store.sync()
        self.header = header

    def load_maps(self) -> None:
        """Read what is here, as it is in the file by now; end what had begun."""
        if self.header.state is State.FORGETTING:
            self.forget()
        boot = boot_id()
        self.map.load(self.blocks, crashed=self.header.boot != boot)
        if self.header.boot != boot:
            self.set_header(replace(self.header, boot=boot))

    # ---- blocks -----------------------------------------------------------------------------

    def run(self, offset: int, end: int) -> tuple[bool, int]:
        """
        Find bytes that are alike, from *offset* on.

        Returns:
            Whether they are here, and the byte behind the last of them, *end* at most.
        """
        block = self.block
        here, behind = self.map.run(offset // block, -(-end // block))
        return here, min(behind * block, end)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill *views* from blocks of one run that are here."""
        self.store.read(self.map.place(offset), views)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Store bytes in blocks of one run; where that is not here, `add` comes next."""
        self.store.write(self.map.place(offset), views)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """The same, of zeroes."""
        self.store.zero(self.map.place(offset), length, unmap=unmap)

    def add(self, offset: int, end: int) -> None:
        """Have whole blocks here from now on."""
        self.map.add(offset // self.block, -(-end // self.block))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what is zeroes in a run that is here, and what is not."""
        shift = self.map.place(offset) - offset
        for extent in self.store.extents(offset + shift, length):
            yield Extent(extent.offset - shift, extent.length, hole=extent.hole)

    # ---- all of it --------------------------------------------------------------------------

    def flush(self) -> None:
        """Make what was written stable, as whatever is read."""
        self.map.make_stable()

    def drop(self, runs: Sequence[Blocks]) -> None:
        """Forget blocks that the disk below has by now, stable; give their room back."""
        self.map.drop(runs)
        for first, end in _in_groups(runs, self.map):
            offset = first * self.block
            self.zero(offset, (end - first) * self.block, unmap=True)

    def forget(self) -> None:
        """Forget all blocks, or, if this ends in the middle, begin with that when it is opened."""
        self.set_header(replace(self.header, state=State.FORGETTING))
        self.map.forget()
        self.store.resize(HEADER)
        self.store.resize(self.map.length(self.header.size))
        visible = min(self.header.base_size, self.header.size)
        self.set_header(replace(self.header, state=State.IDLE, visible=visible))

    def resize(self, size: int) -> None:
        """Have a disk of *size* bytes; what is added is zeroes."""
        old = self.header
        if size < old.size:
            visible = min(old.visible, size)
            self.set_header(replace(old, size=size, visible=visible))
            self.map.drop_behind(self.blocks)
            self.map.make_stable()
            self.store.resize(self.map.length(size))
            return
        last = self.blocks * self.block
        if self.map.has(self.blocks - 1) and last > old.size:
            self.zero(old.size, last - old.size, unmap=True)
        self.store.resize(self.map.length(size))
        self.map.make_stable()
        self.set_header(replace(old, size=size))

    def close(self) -> None:
        """Close the file."""
        self.store.close()


def read_header(store: Store) -> Header | None:
    """Read the header of a file; None: there is none yet; raises VhostBlkError."""
    text = bytearray(min(HEADER, store.length))
    if text:
        store.read(0, [memoryview(text)])
    return unpack(bytes(text), store.path)


def create(store: Store, header: Header) -> Scratch:
    """Make a scratch file of an empty one."""
    scratch = Scratch(store, header)
    store.resize(scratch.map.length(header.size))
    scratch.set_header(header)
    return scratch


def load(store: Store, header: Header) -> Scratch:
    """Open one that has been used before."""
    scratch = Scratch(store, header)
    store.resize(max(store.length, scratch.map.length(header.size)))
    scratch.load_maps()
    return scratch


def _in_groups(runs: Iterable[Blocks], maps: Map) -> Iterator[Blocks]:
    """Yield the same, each within a group."""
    for first, end in runs:
        at = first
        while at < end:
            _, behind = maps.run(at, end)
            yield at, behind
            at = behind
