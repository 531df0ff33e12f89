"""
The inflight region: which requests were taken and not given back, for whoever comes after us.

It is memory that the front-end keeps.  A back-end that dies leaves in it what it had taken; the
next one finds that, and takes it again before anything new.  Two questions are answered so that no
moment is wrong to die in:

*Was this request taken?*  Its entry is complete before it is counted as taken.

*Was this batch given back?*  The driver's own memory says so, in one store.  Before that store
the region says what the batch is; behind it, that it is over.  Who finds the two apart
compares them and does what is left.

The region may be older than us, by other hands, or hostile.  It is read once, when a ring begins;
from then on what we know of it is ours, and it is only written.

Source: vhost-user, "Inflight I/O tracking".
"""

from typing import Protocol

from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.ring import Broken

VERSION = 1
"""Zero: nobody has written there."""
HEADER = 0xFFFF
"""Where a fault is met that is in no entry."""
MOST = 32768
"""Entries a region may have."""


class Header(Protocol):
    """What regions of both formats begin with."""

    features: int
    version: int
    desc_num: int


def check(header: Header, entries: int) -> None:
    """
    Check the header of a region that somebody has written.

    Raises:
        Broken: It is not one that we know.
    """
    for found, expected in (
        (header.features, 0),
        (header.version, VERSION),
        (header.desc_num, entries),
    ):
        if found != expected:
            raise Broken(Reason.INFLIGHT, HEADER, found)
