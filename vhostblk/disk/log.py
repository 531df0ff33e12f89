"""
A layer that writes a line for each request; run by the C core.

The core makes records, as for a trace, and a thread makes lines of them: no request waits for it.
What it cannot keep up with is counted, and said.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, TextIO, cast

from vhostblk.disk.api import Disk
from vhostblk.disk.given import check_path, check_switch
from vhostblk.disk.grammar import parse_switch
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.record import RecordStage
from vhostblk.disk.stage import Bound, BoundRecorder, StageLayer
from vhostblk.disk.taker import Taker
from vhostblk.errors import VhostBlkError
from vhostblk.trace.lines import line
from vhostblk.trace.records import Completed, Submitted, parse

OPTIONS: frozenset[str] = frozenset({"file", "state"})
FORM = "log[:state=on|off][,file=PATH]"

_ROOM = 1 << 20
"""Bytes of records that wait at most."""

log = logging.getLogger(__name__)


class Log(StageLayer):
    """
    Writes a line for each request that passes to *below*, when it is over.

    Args:
        below: Any disk.
        on: From the start.
        file: Where lines are appended; empty: the server's log.
    """

    name: ClassVar[str] = "log"
    commands = ("on", "off")

    def __init__(self, below: object, *, on: bool = True, file: str = "") -> None:
        super().__init__(below)
        self._on = check_switch(on, "on")
        self._file = check_path(file, "file")
        self._out: TextIO | None = None
        self._teller: _Teller | None = None

    # ---- for an operator --------------------------------------------------------------------

    def settings(self) -> Mapping[str, Value]:
        """Return where lines go, and how many requests have none."""
        told: dict[str, Value] = {
            "state": "on" if self._on else "off",
            "file": self._file or None,
        }
        if self.bound is not None:
            told["dropped"] = cast("BoundRecorder", self.bound).state().dropped
        return told

    def change(self, values: Mapping[str, str]) -> None:
        """Switch it on or off."""
        for key in values:
            if key != "state":
                raise VhostBlkError(f"log: {key!r} cannot be changed while it serves")
        self._become(on=parse_switch(values["state"], "state"))

    def on(self) -> None:
        """Write lines from now on."""
        self._become(on=True)

    def off(self) -> None:
        """Write none."""
        self._become(on=False)

    def _become(self, *, on: bool) -> None:
        self._on = on
        if self.bound is not None:
            self.bound.set(self.stage())

    # ---- the core ---------------------------------------------------------------------------

    def stage(self) -> RecordStage:
        """Return whether requests are told of."""
        return RecordStage(fd=-1, on=self._on, room=_ROOM)

    def bind(self, bound: Bound) -> None:
        """Begin to write lines."""
        super().bind(bound)
        if self._teller is None:
            self._teller = _Teller(cast("BoundRecorder", bound), self._tell)

    # ---- the contract -----------------------------------------------------------------------

    async def open(self) -> None:
        """
        Open the disk below, and the file.

        Raises:
            VhostBlkError: It cannot be written.
        """
        if self._file:
            try:
                self._out = Path(self._file).open("a", buffering=1)  # noqa: ASYNC230, SIM115 - closed by `close`
            except OSError as error:
                raise VhostBlkError(f"log: {self._file}: {error.strerror}") from error
        try:
            await super().open()
        except BaseException:
            self._close_file()
            raise

    async def close(self) -> None:
        """Write what is left, and close the disk below."""
        try:
            if self._teller is not None:
                self._teller.close()
                self._teller = None
        finally:
            self._close_file()
            await super().close()

    def _close_file(self) -> None:
        out, self._out = self._out, None
        if out is not None:
            with contextlib.suppress(OSError):  # what it did not take it tries to write once more
                out.close()

    def _tell(self, text: str) -> None:
        if self._out is not None:
            try:
                self._out.write(text + "\n")
            except OSError as error:
                log.warning("%s: %s; its lines go on here", self._file, error.strerror)
                self._close_file()
            else:
                return
        log.info("%s", text)


class _Teller:
    """
    Makes lines of records, on a thread.

    Args:
        bound: The stage.
        tell: Takes a line.
    """

    def __init__(self, bound: BoundRecorder, tell: Callable[[str], None]) -> None:
        self._bound = bound
        self._tell = tell
        self._clock = time.monotonic_ns()
        self._started = time.time_ns()
        self._under_way: dict[int, Submitted] = {}
        self._seq = 0
        self._dropped = 0
        self._taker = Taker("log", bound.wake_fd, self._take)

    def close(self) -> None:
        """Tell all that is there, and end."""
        self._taker.close()

    def _take(self) -> None:
        while records := self._bound.take():
            now = time.monotonic_ns()
            for record in parse(records, first=self._seq, clock=self._clock, written=now):
                match record:
                    case Submitted():
                        self._under_way[record.seq] = record
                    case Completed():
                        self._over(record)
            self._seq += len(records) // 8
        dropped = self._bound.state().dropped
        if dropped != self._dropped:
            self._tell(f"{dropped - self._dropped} records found no room: requests are missing")
            self._dropped = dropped
            self._under_way.clear()  # of some the end was dropped: they would stay for good

    def _over(self, completed: Completed) -> None:
        submitted = self._under_way.pop(completed.submit, None)
        if submitted is not None:  # else it was dropped, or came while the log was off
            self._tell(line(submitted, completed, started=self._started))


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    on = parse_switch(options.get("state", "on"), "state")
    return Log(below, on=on, file=options.get("file", ""))
