"""What becomes of what a disk cannot do, and what is no time for a setter."""

from dataclasses import dataclass
from enum import StrEnum

from vhostblk.engine.op import Op
from vhostblk.errors import VhostBlkError


class Busy(VhostBlkError):  # noqa: N818 - a state, as EBUSY is
    """A setter was called on a queue that its worker owns: our own bug."""


class OnError(StrEnum):
    """What is done with a request that the disk fails; as QEMU's werror and rerror."""

    REPORT = "report"
    """The driver is told."""
    STOP = "stop"
    """It is held, and its queue takes nothing more, until it is resumed."""
    ENOSPC = "enospc"
    """As *stop* for want of space, else as *report*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """
    A request that the disk failed.

    Args:
        op: What it was.
        offset: First byte on the disk.
        length: Bytes; of DISCARD and WRITE_ZEROES those of the range that failed.
        errno: Why.
    """

    op: Op
    offset: int
    length: int
    errno: int
