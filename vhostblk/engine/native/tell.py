"""What a queue of the core tells, as values of `vhostblk.engine.api`."""

from collections.abc import Callable
from typing import Any, TypeAlias

from vhostblk.engine.api import Op, Stall
from vhostblk.engine.native.core import ffi

Take: TypeAlias = Callable[[Any, Any], int]
"""``vhb_queue_stall`` or ``vhb_queue_failure``."""


def take_note(handle: Any, take: Take) -> Stall | None:
    """Return what *take* tells of a queue; None: nothing."""
    out = ffi.new("struct vhb_stall *")
    if not take(handle, out):
        return None
    return Stall(op=Op(out.op), offset=out.offset, length=out.len, errno=out.error)
