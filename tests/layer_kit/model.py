"""A disk and what it should be: a byte array."""

import asyncio
import errno
import random
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from layer_kit.disks import SECTOR
from vhostblk.disk.call import Calls, run

SECTORS = 203
"""Of the disks here: no multiple of any block but a sector."""
SIZE = SECTORS * SECTOR
BASE = random.Random(6).randbytes(SIZE)
"""What they have at first."""


@dataclass(frozen=True, slots=True)
class Request:
    """
    What is asked of a disk.

    Args:
        op: A method of the contract; "fua" is a write that is stable at its end.
        first: Sector.
        count: Sectors.
        fill: The byte that is written, made different for each sector.
    """

    op: str
    first: int = 0
    count: int = 1
    fill: int = 0

    @property
    def offset(self) -> int:
        """First byte."""
        return self.first * SECTOR

    @property
    def length(self) -> int:
        """Bytes."""
        return self.count * SECTOR

    def data(self) -> bytes:
        """Return what is written."""
        return b"".join(
            bytes(((self.fill + i * 7) & 0xFF, self.first + i & 0xFF, self.fill, i & 0xFF))
            * (SECTOR // 4)
            for i in range(self.count)
        )


OPS = ("read", "write", "fua", "flush", "discard", "write_zeroes", "unmap")


def requests(sectors: int = SECTORS) -> st.SearchStrategy[Request]:
    """Return requests within a disk, most of them short."""

    def made(op: str, first: int, count: int, fill: int) -> Request:
        return Request(op, first, min(count, sectors - first), fill)

    return st.builds(
        made,
        st.sampled_from(OPS),
        st.integers(0, sectors - 1),
        st.one_of(st.integers(1, 9), st.integers(1, 60)),
        st.integers(1, 255),
    )


async def opened(disk: object) -> Calls:
    """Open a disk; return its calls."""
    calls = Calls(disk)
    await run(calls.open)
    return calls


def pieces(data: bytes | bytearray, cut: int) -> list[memoryview]:
    """Return data as a guest may: in several views."""
    whole = memoryview(data)
    at = cut % max(len(data), 1)
    return [whole[:at], whole[at:]] if at else [whole]


async def ask(calls: Calls, request: Request) -> bytes:
    """Carry a request out; return what was read."""
    at, length = request.offset, request.length
    match request.op:
        case "read":
            data = bytearray(length)
            await run(calls.read, at, pieces(data, request.fill * 3))
            return bytes(data)
        case "write" | "fua":
            views = [view.toreadonly() for view in pieces(request.data(), request.fill * 5)]
            await run(calls.write, at, views, fua=request.op == "fua")
        case "flush":
            await run(calls.flush)
        case "discard":
            await run(calls.discard, at, length)
        case "write_zeroes" | "unmap":
            await run(calls.write_zeroes, at, length, unmap=request.op == "unmap")
    return b""


async def refused(calls: Calls, request: Request) -> bool:
    """Tell whether a request fails with EIO."""
    try:
        await ask(calls, request)
    except OSError as error:
        return error.errno == errno.EIO
    return False


def apply(model: bytearray, request: Request) -> None:
    """Do to the model what a request does to a disk."""
    at, length = request.offset, request.length
    match request.op:
        case "write" | "fua":
            model[at : at + length] = request.data()
        case "discard" | "write_zeroes" | "unmap":
            model[at : at + length] = bytes(length)


async def content(calls: Calls) -> bytes:
    """Read all of a disk."""
    data = bytearray(calls.info().size)
    await run(calls.read, 0, [memoryview(data)])
    return bytes(data)


async def compare(calls: Calls, model: bytearray, sequence: Sequence[Request]) -> None:
    """Carry requests out one by one; each read, and all of the disk at the end, is the model's."""
    for request in sequence:
        read = await ask(calls, request)
        if request.op == "read":
            assert read == model[request.offset : request.offset + request.length], request
        apply(model, request)
    assert await content(calls) == model


async def at_once(calls: Calls, sequence: Sequence[Request]) -> bytes:
    """Carry requests out together; return what the disk has then."""
    await asyncio.gather(*(ask(calls, request) for request in sequence))
    return await content(calls)


def apart(sequence: Sequence[Request], sectors: int = SECTORS) -> list[Request]:
    """Return those of the requests that change sectors no other one changes."""
    taken = [False] * sectors
    kept = []
    for one in sequence:
        where = slice(one.first, one.first + one.count)
        if one.op == "flush":
            kept.append(one)
        elif not any(taken[where]):
            taken[where] = [True] * one.count
            kept.append(one)
    return kept
