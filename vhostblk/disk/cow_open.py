"""Opening what a cow keeps, in front of the disk that it was kept for."""

from vhostblk.disk.api import DiskInfo
from vhostblk.disk.call import Calls, run
from vhostblk.disk.cow_header import Header, State, digest, sample_ranges
from vhostblk.disk.cow_scratch import Scratch, create, load, read_header
from vhostblk.disk.store import Store, boot_id, open_store
from vhostblk.errors import VhostBlkError

BLOCK = 64 << 10
"""Bytes of a block, where nobody says how many."""


async def open_scratch(under: Calls, path: str, block: int, taken: int | None) -> Scratch:
    """
    Open a scratch file, or make one.

    Args:
        under: The disk below, open.
        path: The file; empty: memory.
        block: Bytes of a block; 0: as the file has them, or `BLOCK`.
        taken: A descriptor of it that another process has handed over; closed if this fails.

    Raises:
        VhostBlkError: It is another disk's, in use, or no scratch file.
        OSError: The file system has no room, or no file of that size.
    """
    store = open_store(path) if taken is None else Store(taken, path)
    try:
        header = read_header(store)
        if header is None:
            return create(store, await _new_header(under, block))
        _check(header, under.info(), path, block)
        scratch = load(store, header)
        await _check_samples(scratch, under)
    except BaseException:
        store.close()
        raise
    return scratch


async def samples(under: Calls) -> tuple[bytes, ...]:
    """Return digests of pieces of the disk below."""
    info, digests = under.info(), []
    for offset, length in sample_ranges(info.size, info.block_size):
        piece = bytearray(length)
        await run(under.read, offset, [memoryview(piece)])
        digests.append(digest(piece))
    return tuple(digests)


async def _new_header(under: Calls, block: int) -> Header:
    info = under.info()
    block = block or max(BLOCK, info.block_size)
    _check_block(block, info)
    return Header(
        state=State.IDLE,
        block=block,
        size=info.size,
        base_size=info.size,
        visible=info.size,
        boot=boot_id(),
        samples=await samples(under),
    )


def _check(header: Header, info: DiskInfo, path: str, block: int) -> None:
    if block and block != header.block:
        raise VhostBlkError(
            f"scratch={path}: it was made with block={header.block}: write that, or nothing"
        )
    _check_block(header.block, info)
    same = info.size == header.base_size
    if header.state is State.COMMITTING:
        same = info.size in {header.base_size, header.size}
    if not same:
        raise VhostBlkError(
            f"scratch={path}: it was made for a disk of {header.base_size} bytes, and the one "
            f"below has {info.size}: name the disk it was made for, or another scratch file"
        )


def _check_block(block: int, info: DiskInfo) -> None:
    if block % info.block_size:
        raise VhostBlkError(
            f"cow: blocks of {block} bytes are less than those of the disk below: "
            f"write block={info.block_size} or more"
        )


async def _check_samples(scratch: Scratch, under: Calls) -> None:
    """Compare the disk below with what it was, but for what a commit may have changed."""
    header, info = scratch.header, under.info()
    committing = header.state is State.COMMITTING
    if committing and info.size != header.base_size:
        return  # other pieces
    now = await samples(under)
    for i, (offset, length) in enumerate(sample_ranges(info.size, info.block_size)):
        if now[i] == header.samples[i]:
            continue
        blocks = range(offset // header.block, (offset + length - 1) // header.block + 1)
        changed = any(map(scratch.map.has, blocks)) or offset + length > header.visible
        if not (committing and changed):
            raise VhostBlkError(
                f"scratch={scratch.store.path}: it was made for another disk, or the disk below "
                f"was changed since (in {length} bytes at {offset}): with what is kept here, that "
                "is no disk any more: name the disk as it was, or another scratch file"
            )
