"""
``vhostblk`` whose touches of guest memory are watched: AUDITOR WORDS...

Nothing of this is in the product: each of its mappings of guest memory is reported to the auditor
at AUDITOR as soon as it is made.  An inflight region is none, though it is mapped alike.
"""

import mmap
import sys
from pathlib import Path
from unittest import mock

from vhostblk.cli import main
from vhostblk.guest.touches import Report
from vhostblk.memory.mapping import Mapping

_make = Mapping.__init__


def watched_by(auditor: str) -> object:
    """Return what takes the place of the constructor of `Mapping`."""

    def made(mapping: Mapping, fd: int, *, offset: int, length: int) -> None:
        _make(mapping, fd, offset=offset, length=length)
        if "vhostblk-inflight" in str(Path(f"/proc/self/fd/{mapping.fileno()}").readlink()):
            return
        skip = mapping.address % mmap.PAGESIZE
        report = Report(
            auditor,
            fd=mapping.fileno(),
            address=mapping.address - skip,
            length=-(-(skip + length) // mmap.PAGESIZE) * mmap.PAGESIZE,
            offset=offset - skip,
        )
        mapping.before_unmap(report.close)

    return made


if __name__ == "__main__":
    with mock.patch.object(Mapping, "__init__", watched_by(sys.argv[1])):
        sys.exit(main.main(sys.argv[2:]))
