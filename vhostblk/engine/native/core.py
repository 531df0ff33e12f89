"""
The seam to the C core: the only file that imports the compiled module.

No logic here or behind it: errno becomes an exception, and what C points at is kept alive.
"""

import os
from errno import EBUSY
from typing import Any

from vhostblk._native import ffi as _ffi
from vhostblk._native import lib as _lib
from vhostblk.engine.api import Busy
from vhostblk.errors import VhostBlkError

lib: Any = _lib
ffi: Any = _ffi


def check(result: int, what: str) -> int:
    """Turn -errno into an exception that says *what* failed."""
    if result >= 0:
        return result
    if -result == EBUSY:
        raise Busy(f"{what}: the worker owns the queue")
    raise VhostBlkError(f"{what}: {os.strerror(-result)}")


def make(kind: str, new: Any, *args: object) -> Any:
    """Call a ``vhb_…_new`` and return the ``struct vhb_kind *`` it made."""
    out = ffi.new(f"struct vhb_{kind} **")
    check(new(*args, out), kind)
    return out[0]
