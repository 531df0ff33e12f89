"""Recordings made by tests: of a disk in Python, or written down request by request."""

from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vhostblk.disk.call import Pending, run
from vhostblk.disk.layer import Layer
from vhostblk.trace.format import Header, Op, Payload
from vhostblk.trace.reader import Segment, read
from vhostblk.trace.writer import Writer


class Recorder(Layer):
    """
    Writes down what passes, with payloads.

    Args:
        below: Any disk.
        writer: Where.
    """

    name = "recorder"

    def __init__(self, below: object, writer: Writer) -> None:
        super().__init__(below)
        self._writer = writer

    async def _noted(self, seq: int, pending: Pending | Awaitable[None]) -> None:
        if pending is not None:
            await pending
        self._writer.complete(seq)

    async def read(self, offset: int, views: Sequence[memoryview]) -> None:
        length = sum(map(len, views))
        seq = self._writer.submit(Op.READ, offset=offset, length=length)
        await self._noted(seq, self.under.read(offset, views))

    async def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> None:
        data = b"".join(views)
        seq = self._writer.submit(Op.WRITE, offset=offset, length=len(data), payload=data, fua=fua)
        await self._noted(seq, self.under.write(offset, views, fua=fua))

    async def flush(self) -> None:
        await self._noted(self._writer.submit(Op.FLUSH), self.under.flush())

    async def discard(self, offset: int, length: int) -> None:
        seq = self._writer.submit(Op.DISCARD, offset=offset, length=length)
        await self._noted(seq, self.under.discard(offset, length))

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        seq = self._writer.submit(Op.WRITE_ZEROES, offset=offset, length=length, unmap=unmap)
        await self._noted(seq, run(self.under.write_zeroes, offset, length, unmap=unmap))


@contextmanager
def recording(path: Path, size: int, payload: Payload = Payload.FULL) -> Iterator[Writer]:
    """Write a recording of one session."""
    with path.open("wb") as file, Writer(file, Header(size=size, payload=payload)) as writer:
        yield writer


def segment(path: Path) -> Segment:
    """Return the only session of a recording."""
    (only,) = read(path).segments
    return only
