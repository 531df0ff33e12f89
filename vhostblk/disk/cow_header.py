"""
The first sector of a cow's scratch file, and which disk it belongs to.

It is written as a whole, and a medium writes a sector of 512 bytes whole or not at all.  A disk is
known by its size and by sixteen samples of what is stored on it, spread evenly from its first
4 KiB, where partition tables and file systems have their names, to its last.  See "Scratch files"
in the explanations of durability.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b

from vhostblk.errors import VhostBlkError

HEADER = 4096
"""Bytes in front of the first group."""
SAMPLES = 16
"""How many pieces of the disk below are compared."""

_MAGIC = b"vhostcow"
_VERSION = 1
_DIGEST = 16
_SAMPLE = 4096
_LAYOUT = struct.Struct(f"<8sIIIxxxxQQQ16s{SAMPLES * _DIGEST}s")
_CRC = struct.Struct("<I")


class State(IntEnum):
    """What was going on when the header was written; it goes on, or is done again, at `open`."""

    IDLE = 0
    COMMITTING = 1
    FORGETTING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """
    What is known of a scratch file before its maps are read.

    Args:
        state: What was going on.
        block: Bytes of a block.
        size: Bytes of the disk, as a guest sees it.
        base_size: Bytes of the disk below.
        visible: Bytes, from the first on, where the disk below is seen; behind them are zeroes.
        boot: In which run of the kernel the map of all writes was kept.
        samples: Digests of pieces of the disk below, see `sample_ranges`.
    """

    state: State
    block: int
    size: int
    base_size: int
    visible: int
    boot: bytes
    samples: tuple[bytes, ...]

    def pack(self) -> bytes:
        """Return the sector."""
        text = _LAYOUT.pack(
            _MAGIC,
            _VERSION,
            self.state,
            self.block,
            self.size,
            self.base_size,
            self.visible,
            self.boot,
            b"".join(self.samples),
        )
        return (text + _CRC.pack(zlib.crc32(text))).ljust(512, b"\0")


def unpack(text: bytes, path: str) -> Header | None:
    """
    Read a header.

    Args:
        text: The first bytes of a file, as many as `HEADER`, or all it has.
        path: Its name, for errors.

    Returns:
        None where nothing has been written yet.

    Raises:
        VhostBlkError: It is no scratch file, or one of another version.
    """
    if not any(text):
        return None
    if len(text) < _LAYOUT.size + _CRC.size or text[:8] != _MAGIC:
        raise VhostBlkError(
            f"{path}: it is no scratch file, and is left as it is: name another, or a new one"
        )
    (crc,) = _CRC.unpack_from(text, _LAYOUT.size)
    if zlib.crc32(text[: _LAYOUT.size]) != crc:
        raise VhostBlkError(f"{path}: the header of this scratch file is damaged")
    _, version, state, block, size, base, visible, boot, samples = _LAYOUT.unpack_from(text)
    if version != _VERSION:
        raise VhostBlkError(
            f"{path}: a scratch file of version {version}, and this program knows {_VERSION}"
        )
    pieces = (samples[at : at + _DIGEST] for at in range(0, len(samples), _DIGEST))
    return Header(
        state=State(state),
        block=block,
        size=size,
        base_size=base,
        visible=visible,
        boot=boot,
        samples=tuple(pieces),
    )


def sample_ranges(size: int, align: int) -> Sequence[tuple[int, int]]:
    """
    Return which pieces of a disk are compared.

    Args:
        size: Bytes of the disk.
        align: Its block size.

    Returns:
        First byte and length of each.
    """
    length = min(max(_SAMPLE, align), size)
    last = size - length
    return [(last * i // (SAMPLES - 1) // align * align, length) for i in range(SAMPLES)]


def digest(data: bytes | bytearray) -> bytes:
    """Return what a sample is compared by."""
    return blake2b(data, digest_size=_DIGEST).digest()
