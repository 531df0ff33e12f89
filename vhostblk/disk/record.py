"""
A layer that records every request; run by the C core.

The core makes records and blocks of them (native/src/layer_record.c); here the file is opened, the
segment begun and ended (`vhostblk.trace.format`), and a thread sees to it that nothing waits
long (`vhostblk.disk.taker`).
"""

import errno
import fcntl
import logging
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

from vhostblk.disk.api import Disk
from vhostblk.disk.given import check_path
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.stage import Bound, BoundRecorder, StageLayer
from vhostblk.disk.taker import Taker
from vhostblk.errors import VhostBlkError
from vhostblk.trace.format import WORD, Header, Payload, end_block, segment_block
from vhostblk.trace.reader import read
from vhostblk.version import version

OPTIONS: frozenset[str] = frozenset({"path", "payload"})
FORM = "record:path=FILE[,payload=none|digest|full]"

_ROOM = {Payload.NONE: 1 << 19, Payload.DIGEST: 1 << 19, Payload.FULL: 1 << 23}
"""Bytes that wait to be written at most."""
_NUMBER = {Payload.NONE: 0, Payload.DIGEST: 1, Payload.FULL: 2}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordStage:
    """
    What the core is to do; see ``struct vhb_record``.

    Args:
        fd: Where blocks are appended; -1: nowhere.
        on: Whether requests are recorded.
        payload: ``VHB_RECORD_*``.
        room: Bytes that may wait.
        segment: What blocks belong to.
    """

    fd: int
    on: bool
    payload: int = 0
    room: int = 1 << 18
    segment: int = 0


class Record(StageLayer):
    """
    Writes every request of *below* to a trace.

    Args:
        below: Any disk.
        path: The trace; a segment is appended to one that is there.
        payload: What is kept of the bytes: ``none``, ``digest`` or ``full``.

    Raises:
        VhostBlkError: There is no such payload.
    """

    name: ClassVar[str] = "record"
    commands = ("write_out",)

    def __init__(
        self, below: object, *, path: str | os.PathLike[str], payload: str = "none"
    ) -> None:
        super().__init__(below)
        if not path:
            raise VhostBlkError("record: path is empty: write the name of a file")
        self._path = Path(check_path(path, "record: path"))
        self._payload = _payload(payload)
        self._fd = -1
        self._header = Header(size=0)
        self._writer: _Writer | None = None

    # ---- for an operator --------------------------------------------------------------------

    def settings(self) -> Mapping[str, Value]:
        """Return where it goes, how much there is, and what the file did not take."""
        told: dict[str, Value] = {"path": str(self._path), "payload": self._payload.value}
        if self.bound is not None:
            state = cast("BoundRecorder", self.bound).state()
            told["bytes"] = state.bytes
            told["lost_bytes"] = state.lost * WORD
            told["error"] = os.strerror(state.error) if state.error else None
        return told

    def write_out(self) -> None:
        """Write what waits."""
        if self.bound is not None:
            cast("BoundRecorder", self.bound).flush()

    # ---- the core ---------------------------------------------------------------------------

    def stage(self) -> RecordStage:
        """Return where records go."""
        return RecordStage(
            fd=self._fd,
            on=self._fd >= 0,
            payload=_NUMBER[self._payload],
            room=_ROOM[self._payload],
            segment=self._header.started,
        )

    def bind(self, bound: Bound) -> None:
        """Begin to see to it that it is written."""
        super().bind(bound)
        self._begin()

    def _begin(self) -> None:
        if self._writer is None and self.bound is not None:
            self._writer = _Writer(self._path, cast("BoundRecorder", self.bound))

    # ---- the contract -----------------------------------------------------------------------

    async def open(self) -> None:
        """
        Open the disk below, and begin a segment.

        Raises:
            VhostBlkError: The file is no trace, or cannot be written.
        """
        await super().open()
        try:
            self._open()
        except BaseException:
            await super().close()
            raise

    async def close(self) -> None:
        """End the segment, and close the disk below."""
        try:
            self._close()
        finally:
            await super().close()

    def _open(self) -> None:
        info = self.under.info()
        self._header = Header(
            size=info.size,
            block_size=info.block_size,
            payload=self._payload,
            started=time.time_ns(),
            clock=time.monotonic_ns(),
            software=f"vhostblk {version()}",
        )
        self._fd = _opened(self._path)
        try:
            _append(self._fd, segment_block(self._header))
        except OSError as error:
            os.close(self._fd)
            self._fd = -1
            raise VhostBlkError(f"record: {self._path}: {error.strerror}") from error
        if self.bound is not None:  # it was closed, and is opened again
            self.bound.set(self.stage())
        self._begin()

    def _close(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            if self._writer is not None and self.bound is not None:
                self._writer.close()
                self._writer = None
                state = cast("BoundRecorder", self.bound).state()
                self.bound.set(self.stage())  # before the descriptor is another file's
                _end(fd, self._header, first=state.taken, lost=state.lost)
            else:
                _end(fd, self._header, first=0, lost=0)
        finally:
            os.close(fd)


class _Writer:
    """
    Has what waits written, on a thread, and says once when it cannot be.

    Args:
        path: For messages.
        bound: The stage.
    """

    def __init__(self, path: Path, bound: BoundRecorder) -> None:
        self._path = path
        self._bound = bound
        self._failed = False
        self._taker = Taker("record", bound.wake_fd, self._write)

    def close(self) -> None:
        """Write all that is there, and end."""
        self._taker.close()

    def _write(self) -> None:
        self._bound.flush()
        state = self._bound.state()
        if state.error and not self._failed:
            log.error(
                "%s takes nothing more (%s): requests are served and not recorded until it does",
                self._path,
                os.strerror(state.error),
            )
        elif self._failed and not state.error:
            lost = state.lost * WORD
            log.warning("%s: recording goes on; %d bytes of it are missing", self._path, lost)
        self._failed = bool(state.error)


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    if not options.get("path"):
        raise VhostBlkError(f"record: where to is missing: write {FORM}")
    return Record(below, path=options["path"], payload=options.get("payload", "none"))


def _payload(text: str) -> Payload:
    try:
        return Payload(text)
    except ValueError:
        raise VhostBlkError(
            f"record: payload={text}: write payload= and one of {', '.join(Payload)}"
        ) from None


def _opened(path: Path) -> int:
    """Open a trace to append to, whole to its end, locked; or make one."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        raise VhostBlkError(f"record: {path}: {error.strerror}") from error
    try:
        _make_whole(fd, path)
        fcntl.flock(fd, fcntl.LOCK_SH)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _make_whole(fd: int, path: Path) -> None:
    """Cut a torn tail off, unless somebody is writing it just now."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise VhostBlkError(f"record: {path} is no regular file: name one, or a new one")
    if not status.st_size:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        return
    try:
        trace = read(path)
    except VhostBlkError as error:
        raise VhostBlkError(f"record: {error}; name another file, or remove it") from error
    if trace.damage is not None:
        cut = status.st_size - trace.end
        log.warning("%s: %s; these %d bytes are cut off", path, trace.damage, cut)
        os.ftruncate(fd, trace.end)


def _append(fd: int, block: bytes) -> None:
    if os.write(fd, block) != len(block):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _end(fd: int, header: Header, *, first: int, lost: int) -> None:
    """Say that this was all; a full disk has been told of."""
    with suppress(OSError):
        _append(fd, end_block(header, first=first, time=time.monotonic_ns(), lost=lost))
