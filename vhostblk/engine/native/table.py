"""The table of segments as the C core reads it."""

from collections.abc import Sequence
from struct import Struct
from typing import Any

from vhostblk.engine.native.core import ffi
from vhostblk.memory.space import Segment

_ROW = Struct("=QQQII")
"""``struct vhb_segment``."""


class Tables:
    """The table that was made last: the queues of a device ask for the same one in turn."""

    def __init__(self) -> None:
        self._segments: Sequence[Segment] | None = None
        self._table: Any = None

    def of(self, segments: Sequence[Segment]) -> Any:
        """Return ``struct vhb_segment[]``, which the core is to copy."""
        if segments is not self._segments or not isinstance(segments, tuple):
            rows = [_ROW.pack(s.iova, s.length, s.host, s.access, 0) for s in segments]
            self._table = ffi.from_buffer("struct vhb_segment[]", b"".join(rows))
            self._segments = segments
        return self._table
