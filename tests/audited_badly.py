"""
``vhostblk`` under an auditor, and spoiled: AUDITOR MISDEED WORDS...; the engine is the reference.

The negative control of the proof on a real guest.
"""

import ctypes
import sys
from unittest import mock
from weakref import ref

from audited import watched_by

from vhostblk.cli import main
from vhostblk.engine.reference import memory
from vhostblk.memory.mapping import Mapping

_view = memory.view


def read_on(host: int, length: int, *, writable: bool) -> tuple[memoryview, ref[object]]:
    """Read a byte behind the buffer, too."""
    ctypes.string_at(host + length, 1)
    return _view(host, length, writable=writable)


def write_back(host: int, length: int, *, writable: bool) -> tuple[memoryview, ref[object]]:
    """Write the first byte of every buffer back to where it was, be it read-only or not."""
    ctypes.memmove(host, ctypes.string_at(host, 1), 1)
    return _view(host, length, writable=writable)


MISDEEDS = {one.__name__: one for one in (read_on, write_back)}

if __name__ == "__main__":
    with (
        mock.patch.object(Mapping, "__init__", watched_by(sys.argv[1])),
        mock.patch("vhostblk.engine.reference.work.view", MISDEEDS[sys.argv[2]]),
    ):
        sys.exit(main.main(sys.argv[3:]))
