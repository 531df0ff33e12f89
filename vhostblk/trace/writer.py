"""
Write a trace from Python: for tests, and for recordings that come from somewhere else.

The core writes those of a server by itself; only the blocks around its records are made here
(`vhostblk.trace.format`).
"""

from types import TracebackType
from typing import BinaryIO, Self

from vhostblk.trace.format import (
    NEAR,
    SECTOR,
    WORD,
    BlockKind,
    Flag,
    Header,
    Op,
    Payload,
    block,
    complete,
    data,
    end_block,
    segment_block,
    submit,
)


class Writer:
    """
    One segment.

    Args:
        file: Where it goes; stays open.
        header: What it says of itself.
        block_size: Bytes of records from which on a block is written.
    """

    def __init__(self, file: BinaryIO, header: Header, *, block_size: int = 1 << 16) -> None:
        self._file = file
        self._header = header
        self._block_size = block_size
        self._body = bytearray()
        self._first = 0
        self._time = self._oldest = header.clock
        file.write(segment_block(header))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def submit(  # noqa: PLR0913 - a request
        self,
        op: Op,
        *,
        offset: int = 0,
        length: int = 0,
        time: int = 0,
        queue: int = 0,
        fua: bool = False,
        unmap: bool = False,
        digest: int | None = None,
        payload: bytes | None = None,
    ) -> int:
        """
        Say that a request goes to the disk.

        Args:
            op: What it asks.
            offset: First byte; a multiple of a sector.
            length: Bytes; whole sectors.
            time: Nanoseconds since the segment began.
            queue: On which virtqueue.
            fua: What it writes is stable when it is over.
            unmap: Zeroes may be a hole.
            digest: CRC-32 of what it writes, in a trace that keeps digests.
            payload: What it writes, in a trace that keeps payloads.

        Returns:
            Its sequence number.
        """
        flags = Flag.FUA * fua | Flag.UNMAP * unmap | Flag.DIGEST * (digest is not None)
        seq = self._add(
            submit(
                op,
                queue=queue,
                sector=offset // SECTOR,
                sectors=length // SECTOR,
                time=self._at(time),
                flags=flags,
                digest=digest or 0,
            )
        )
        if payload is not None and self._header.payload is Payload.FULL:
            self._add(data(seq, payload))
        return seq

    def complete(
        self, submitted: int, *, time: int = 0, error: int = 0, digest: int | None = None
    ) -> int:
        """Say that the request *submitted* is over; return the sequence number of that."""
        now = self._at(time)
        seq = self._seq
        return self._add(complete(submitted, seq=seq, error=error, time=now, digest=digest))

    def flush(self) -> None:
        """Write what is there as a block."""
        if not self._body:
            return
        self._file.write(
            block(
                BlockKind.RECORDS,
                bytes(self._body),
                segment=self._header.started,
                first=self._first,
                time=self._time,
            )
        )
        self._first += len(self._body) // WORD
        self._body.clear()

    def lose(self, words: int) -> None:
        """Leave a gap, as a recording does whose disk was full."""
        self.flush()
        self._first += words

    def close(self) -> None:
        """Write the rest, and that this is all."""
        self.flush()
        self._file.write(end_block(self._header, first=self._first, time=self._time, lost=0))

    @property
    def _seq(self) -> int:
        return self._first + len(self._body) // WORD

    def _at(self, time: int) -> int:
        """Return when a record is of, in a block whose time is near that."""
        now = self._header.clock + time
        if self._body and not self._time - NEAR < now < self._oldest + NEAR:
            self.flush()
        self._oldest = min(self._oldest, now) if self._body else now
        self._time = max(self._time, now) if self._body else now
        return now

    def _add(self, record: bytes) -> int:
        seq = self._seq
        self._body += record
        if len(self._body) >= self._block_size:
            self.flush()
        return seq
