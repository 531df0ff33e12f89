"""
Which blocks a cow holds, and where: the layout of a scratch file behind its header.

::

    header | group | group | …
    group = map of all writes | map of what is stable | 32768 blocks

A map is a page with a bit for each block, the lowest of the first byte first.  A block's bit says
that it is here, whole; what is a hole in the file is zeroes.  Groups have fixed places, so the file
is as sparse as what was written, and a disk becomes larger by more of them.

The first map is written with each write, and true as long as the kernel's page cache is: it is
what counts after a process was killed.  The second is written when everything it speaks of is
stable: it is what counts after the host has crashed.
"""

from collections.abc import Iterable, Iterator

from vhostblk.disk.cow_header import HEADER
from vhostblk.disk.store import Store

PAGE = 4096
PER_GROUP = PAGE * 8
"""Blocks."""
Blocks = tuple[int, int]
"""A block, and the one behind the last."""


class Map:
    """
    The maps of an open scratch file; a copy of the first is in memory.

    Args:
        store: The file.
        block: Bytes of a block.
    """

    def __init__(self, store: Store, block: int) -> None:
        self._store = store
        self._block = block
        self._group_bytes = 2 * PAGE + PER_GROUP * block
        self._pages: dict[int, bytearray] = {}
        self._unstable: set[int] = set()

    def place(self, offset: int) -> int:
        """Return where in the file a byte of the disk is."""
        group, at = divmod(offset, PER_GROUP * self._block)
        return HEADER + group * self._group_bytes + 2 * PAGE + at

    def length(self, size: int) -> int:
        """Return how long the file of a disk of *size* bytes is."""
        blocks = -(-size // self._block)
        return self.place((blocks - 1) * self._block) + self._block

    def load(self, blocks: int, *, crashed: bool) -> None:
        """
        Read the maps of a disk of so many blocks.

        Args:
            blocks: What is behind these is forgotten.
            crashed: What is only in the first map may be lost.
        """
        self._pages.clear()
        self._unstable.clear()
        for group in range(-(-blocks // PER_GROUP)):
            both = bytearray(2 * PAGE)
            self._store.read(self._at(group), [memoryview(both)])
            page, stable = both[:PAGE], both[PAGE:]
            if crashed:
                page = stable
                self._store.write(self._at(group), [memoryview(page)])
            if any(page) or any(stable):
                self._pages[group] = page
            if page != stable:
                self._unstable.add(group)
        self.drop_behind(blocks)

    def has(self, block: int) -> bool:
        """Tell whether a block is here."""
        page = self._pages.get(block // PER_GROUP)
        at = block % PER_GROUP
        return page is not None and bool(page[at >> 3] >> (at & 7) & 1)

    def run(self, block: int, end: int) -> tuple[bool, int]:
        """
        Find blocks that are alike, from *block* on: all here, or all not; in one group.

        Returns:
            Whether they are here, and the block behind the last of them, *end* at most.
        """
        group = block // PER_GROUP
        first = group * PER_GROUP
        end = min(end, first + PER_GROUP)
        page = self._pages.get(group)
        if page is None:
            return False, end
        at, stop = block - first, end - first
        here = page[at >> 3] >> (at & 7) & 1
        alike = 0xFF * here
        while at < stop:
            if page[at >> 3] == alike:
                at = (at | 7) + 1
            elif page[at >> 3] >> (at & 7) & 1 == here:
                at += 1
            else:
                break
        return bool(here), first + min(at, stop)

    def held(self) -> Iterator[Blocks]:
        """Yield the runs of blocks that are here, in order."""
        for group in sorted(self._pages):
            block, end = group * PER_GROUP, (group + 1) * PER_GROUP
            while block < end:
                here, behind = self.run(block, end)
                if here:
                    yield block, behind
                block = behind

    def count(self) -> int:
        """Return how many blocks are here."""
        return sum(int.from_bytes(page, "little").bit_count() for page in self._pages.values())

    def add(self, first: int, end: int) -> None:
        """Note that blocks are here now; their data was written before."""
        for group, start, stop in _by_group(first, end):
            page = bytearray(self._pages.get(group, bytes(PAGE)))
            _put(page, start, stop, here=True)
            low, high = start >> 3, (stop - 1 >> 3) + 1
            # First: what is here in memory alone would be gone with this process.
            self._store.write(self._at(group) + low, [memoryview(page)[low:high]])
            self._pages[group] = page
            self._unstable.add(group)

    def drop(self, runs: Iterable[Blocks]) -> None:
        """
        Forget blocks, for good; others stay what they are.

        Between the two maps nothing is lost: the data stays where it is.
        """
        changed: dict[int, bytearray] = {}
        for first, end in runs:
            for group, start, stop in _by_group(first, end):
                page = changed.setdefault(group, bytearray(self._pages.get(group, bytes(PAGE))))
                _put(page, start, stop, here=False)
        self._store.sync()  # what else these maps speak of
        for group, page in changed.items():
            self._store.write(self._at(group) + PAGE, [memoryview(page)])
        self._store.sync()
        for group, page in changed.items():
            self._store.write(self._at(group), [memoryview(page)])
            self._pages[group] = page
            self._unstable.discard(group)

    def drop_behind(self, blocks: int) -> None:
        """Forget those behind the end of the disk; stable with the next `make_stable`."""
        end = (max(self._pages, default=0) + 1) * PER_GROUP
        for group, start, stop in _by_group(blocks, end):
            page = bytearray(self._pages.get(group, bytes(PAGE)))
            _put(page, start, stop, here=False)
            # Where nothing changes nothing is written: another process may be about to.
            if page != self._pages.get(group, page):
                self._store.write(self._at(group), [memoryview(page)])
                self._pages[group] = page
                self._unstable.add(group)

    def make_stable(self) -> None:
        """Make what was written stable, and then that it is here."""
        self._store.sync()
        if not self._unstable:
            return
        for group in self._unstable:
            self._store.write(self._at(group) + PAGE, [memoryview(self._pages[group])])
        self._store.sync()
        self._unstable.clear()

    def forget(self) -> None:
        """Have nothing here; the file has been emptied."""
        self._pages.clear()
        self._unstable.clear()

    def _at(self, group: int) -> int:
        return HEADER + group * self._group_bytes


def _by_group(first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield groups, with the first block there and the one behind the last."""
    while first < end:
        group, start = divmod(first, PER_GROUP)
        stop = min(end - group * PER_GROUP, PER_GROUP)
        yield group, start, stop
        first = group * PER_GROUP + stop


def _put(page: bytearray, start: int, stop: int, *, here: bool) -> None:
    """Set the bits from *start* to *stop*, or clear them."""
    low, high = (start + 7) >> 3, stop >> 3
    if low < high:
        page[low:high] = (b"\xff" if here else b"\0") * (high - low)
        edges = [*range(start, low * 8), *range(high * 8, stop)]
    else:
        edges = [*range(start, stop)]
    for at in edges:
        if here:
            page[at >> 3] |= 1 << (at & 7)
        else:
            page[at >> 3] &= ~(1 << (at & 7))
