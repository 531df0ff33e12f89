"""
A key-value store on a disk: a log, and a commit record that says how much of it counts.

Two sectors hold commit records, in turn, so a torn one never is the only one.  A commit writes the
new entries, flushes, writes the commit record, and flushes.  `forgetful` leaves the first of the
two flushes out, as one who thinks that writes are done in order.
"""

import struct
import zlib
from collections.abc import Callable
from typing import Protocol

SECTOR = 512
LOG = 8
"""The sector the log begins at."""
_COMMIT = struct.Struct("<8sIII")
_ENTRY = struct.Struct("<IHH")
_MAGIC = b"tinykv01"
_KEY = 16
VALUE = 1000


class Device(Protocol):
    """What of a guest the store uses."""

    def write(self, sector: int, data: bytes) -> object: ...
    def flush(self) -> object: ...


class Store:
    """
    An empty store, to be filled.

    Args:
        device: The disk, all zeroes.
        forgetful: The planted bug.
    """

    def __init__(self, device: Device, *, forgetful: bool = False) -> None:
        self._device = device
        self._forgetful = forgetful
        self._end = LOG
        self._commits = 0
        self._pending: list[bytes] = []

    def put(self, key: str, value: bytes) -> None:
        """Have a value from the next commit on."""
        self._pending.append(_entry(key, value))

    def commit(self) -> None:
        """Return when all that was put will survive a power cut."""
        for entry in self._pending:
            self._device.write(self._end, entry)
            self._end += len(entry) // SECTOR
        self._pending = []
        if not self._forgetful:
            self._device.flush()
        self._commits += 1
        body = _COMMIT.pack(_MAGIC, self._commits, self._end, 0)[:-4]
        record = body + struct.pack("<I", zlib.crc32(body))
        self._device.write(self._commits % 2, record.ljust(SECTOR, b"\0"))
        self._device.flush()


def load(read: Callable[[int, int], bytes]) -> tuple[int, dict[str, bytes]]:
    """
    Open a store after a power cut.

    Args:
        read: Returns so many bytes from a byte on.

    Returns:
        How many commits it has seen, and what is in it.

    Raises:
        ValueError: It is corrupt.
    """
    commits, end = max(_commit(read(at * SECTOR, SECTOR)) for at in (0, 1))
    values, at = dict[str, bytes](), LOG * SECTOR
    while at < end * SECTOR:
        crc, keys, length = _ENTRY.unpack(read(at, _ENTRY.size))
        size = -(-(_ENTRY.size + keys + length) // SECTOR) * SECTOR
        body = read(at + 4, _ENTRY.size - 4 + keys + length)
        if not length or crc != zlib.crc32(body):
            raise ValueError(f"commit {commits}: the entry at byte {at} is damaged")
        key = body[_ENTRY.size - 4 :][:keys].decode()
        values[key] = body[_ENTRY.size - 4 + keys :]
        at += size
    return commits, values


def fill(device: Device, commits: int, *, forgetful: bool) -> None:
    """Put two values for each commit."""
    store = Store(device, forgetful=forgetful)
    for number in range(1, commits + 1):
        store.put("last", bytes([number]) * VALUE)
        store.put(f"key{number}", bytes([number]) * VALUE)
        store.commit()


def check(read: Callable[[int, int], bytes]) -> None:
    """Raise ValueError unless a store that was filled is what some commit of it has left."""
    commits, values = load(read)
    expected = {f"key{n}": bytes([n]) * VALUE for n in range(1, commits + 1)}
    if commits:
        expected["last"] = bytes([commits]) * VALUE
    if values != expected:
        raise ValueError(f"commit {commits}: not what was put")


def _entry(key: str, value: bytes) -> bytes:
    body = struct.pack("<HH", len(key), len(value)) + key.encode() + value
    entry = struct.pack("<I", zlib.crc32(body)) + body
    return entry.ljust(-(-len(entry) // SECTOR) * SECTOR, b"\0")


def _commit(raw: bytes) -> tuple[int, int]:
    magic, commits, end, crc = _COMMIT.unpack_from(raw)
    if magic != _MAGIC or crc != zlib.crc32(raw[: _COMMIT.size - 4]):
        return 0, LOG
    return commits, end


if __name__ == "__main__":
    import sys
    from pathlib import Path

    image = Path(sys.argv[1]).read_bytes()
    try:
        check(lambda at, length: image[at : at + length])
    except ValueError as error:
        sys.exit(f"corrupt: {error}")
