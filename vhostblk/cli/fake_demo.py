"""
What the fake guest does with the demonstration's disk where there is no QEMU.

It drives the same socket, memory and rings as a virtual machine would; what it cannot show is a
kernel's driver and a file system on top.
"""

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, GuestError, Range
from vhostblk.spec import virtio_blk

MIB = 1 << 20
_SECTORS = MIB // virtio_blk.SECTOR_SIZE
_CHUNKS = 8
_SEED = 1


def run(socket_path: Path, *, queues: int, timeout_s: float, tell: Callable[[str], None]) -> bytes:
    """
    Write, read back and discard on a served disk.

    Args:
        socket_path: Where the disk is served.  What is on its first 8 MiB is lost.
        queues: Virtqueues to use, in turn.
        timeout_s: How long one request may take.
        tell: Told one line per step, as it happens.

    Returns:
        What the disk must begin with now.

    Raises:
        VhostBlkError: The device did not answer, or what was read is not what was written.
    """
    tell(f"guest    the fake guest connects to {socket_path}")
    try:
        with Guest.connect(socket_path, queues=queues, timeout=timeout_s) as guest:
            left = _use(guest, queues, tell)
            guest.stop()
    except GuestError as error:
        raise VhostBlkError(f"the fake guest failed: {error}") from error
    tell("guest    stopped its device")
    return left


def _use(guest: Guest, queues: int, tell: Callable[[str], None]) -> bytes:
    config = guest.config()
    serial = guest.get_id().decode(errors="replace")
    tell(f"guest    found the disk: {config.capacity // _SECTORS} MiB, serial {serial}")
    tell(f"guest    drives {queues} queue(s)")
    data = random.Random(_SEED).randbytes(_CHUNKS * MIB)  # noqa: S311 - noise, not a secret
    for number in range(_CHUNKS):
        chunk = data[number * MIB : (number + 1) * MIB]
        guest.write(number * _SECTORS, chunk, queue=number % queues)
    guest.flush()
    tell(f"guest    wrote {_CHUNKS} MiB and flushed")
    read = b"".join(
        guest.read(number * _SECTORS, MIB, queue=number % queues) for number in range(_CHUNKS)
    )
    _same(data, read)
    tell(f"guest    read it back; sha256 {hashlib.sha256(read).hexdigest()[:16]}… agrees")
    if not guest.features & virtio_blk.F_WRITE_ZEROES:
        return data
    guest.write_zeroes([Range(0, _SECTORS, virtio_blk.WRITE_ZEROES_F_UNMAP)])
    _same(bytes(MIB), guest.read(0, MIB))
    tell("guest    wrote zeroes over the first MiB and read them back")
    return bytes(MIB) + data[MIB:]


def _same(written: bytes, read: bytes) -> None:
    if written != read:
        where = next(n for n, (a, b) in enumerate(zip(written, read, strict=True)) if a != b)
        raise VhostBlkError(f"byte {where} read back differs from what was written")
