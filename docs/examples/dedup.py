"""
A disk that stores each block once, compressed, whatever places it is at.

    vhostblk serve --socket-path /tmp/dedup.sock python:dedup:Dedup,path=store.db,size=1G

Blocks are rows of an SQLite file, by the hash of their bytes; the map says which block is where.
SQLite's journal makes a flush a transaction: behind a crash the disk is as it was at the last one.
"""

import errno
import hashlib
import sqlite3
import zlib
from collections.abc import Iterator, Sequence

import vhostblk

BLOCK = 4096
TABLES = """
CREATE TABLE IF NOT EXISTS about (size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS blocks (hash BLOB PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS map (place INTEGER PRIMARY KEY, hash BLOB NOT NULL);
"""


class Dedup(vhostblk.Disk):
    """*size* bytes in the file *path*, which is made where it is not there."""

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size = path, size

    def open(self) -> None:
        """Open the file, and see that it is for a disk of this size."""
        try:
            self.store = sqlite3.connect(self.path, isolation_level=None)
            self.store.executescript(TABLES)
        except sqlite3.Error as error:
            raise vhostblk.VhostBlkError(f"{self.path}: {error}") from error
        (known,) = self.store.execute("SELECT max(size) FROM about").fetchone()
        if known is None:
            self.store.execute("INSERT INTO about VALUES (?)", [self.size])
        elif known != self.size:
            self.store.close()
            raise vhostblk.VhostBlkError(f"{self.path} has {known} bytes: say size={known}")
        self.store.execute("BEGIN")

    def close(self) -> None:
        """Keep what was not flushed, too, and drop blocks that are at no place any more."""
        if self.store.in_transaction:
            self.sql("DELETE FROM blocks WHERE hash NOT IN (SELECT hash FROM map)")
            self.sql("COMMIT")
        self.store.close()

    def info(self) -> vhostblk.DiskInfo:
        """Have the guest ask for whole blocks: a part of one cannot be stored."""
        return vhostblk.DiskInfo(size=self.size, block_size=BLOCK)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Put blocks together; one that is nowhere is zeroes."""
        length = sum(map(len, views))
        self.scatter(b"".join(self.block(place) for place in places(offset, length)), views)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Hash a copy: the guest may change its memory while we look at it."""
        data = b"".join(views)
        for i, place in enumerate(places(offset, len(data))):
            block = data[i * BLOCK : (i + 1) * BLOCK]
            name = hashlib.blake2b(block, digest_size=20).digest()
            self.sql("INSERT OR IGNORE INTO blocks VALUES (?, ?)", name, zlib.compress(block, 1))
            self.sql("INSERT OR REPLACE INTO map VALUES (?, ?)", place, name)

    def discard(self, offset: int, length: int) -> None:
        """Forget which blocks were there."""
        around = places(offset, length)
        self.sql("DELETE FROM map WHERE place >= ? AND place < ?", around.start, around.stop)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """The same: what is nowhere reads as zeroes."""
        self.discard(offset, length)

    def flush(self) -> None:
        """Make everything stable."""
        self.sql("COMMIT")
        self.store.execute("BEGIN")

    def sql(self, text: str, *values: object) -> sqlite3.Cursor:
        """
        Run a statement.

        On some errors, as when there is no room, SQLite undoes the transaction: writes that were
        acknowledged.  From then on nothing works, so that a guest does not go on without them.
        """
        if not self.store.in_transaction:
            raise OSError(errno.EIO, "what was not flushed is lost: serve the disk again")
        try:
            return self.store.execute(text, values)
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error)) from error

    def block_status(self, offset: int, length: int) -> Iterator[vhostblk.Extent]:
        """Tell holes, block by block."""
        for place in places(offset, length):
            yield vhostblk.Extent(place * BLOCK, BLOCK, hole=self.stored(place) is None)

    def stored(self, place: int) -> bytes | None:
        """Return the block at a place as it is stored."""
        query = "SELECT data FROM map JOIN blocks USING (hash) WHERE place = ?"
        row = self.sql(query, place).fetchone()
        return None if row is None else row[0]

    def block(self, place: int) -> bytes:
        """Return the block at a place."""
        stored = self.stored(place)
        return bytes(BLOCK) if stored is None else zlib.decompress(stored)

    def scatter(self, data: bytes, views: Sequence[memoryview]) -> None:
        """Copy *data* into *views*."""
        at = 0
        for view in views:
            view[:] = data[at : at + len(view)]
            at += len(view)


def places(offset: int, length: int) -> range:
    """Return the numbers of the blocks of a range."""
    return range(offset // BLOCK, (offset + length) // BLOCK)
