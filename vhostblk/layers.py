"""
Layers to put in front of any disk: ``Pause(Ram(1 << 20))``.

One a line, in the order of the alphabet.
"""

from vhostblk.disk.cache import Cache
from vhostblk.disk.cow import Cow
from vhostblk.disk.cut import Cut
from vhostblk.disk.delay import Delay
from vhostblk.disk.error import Error
from vhostblk.disk.layer import Layer
from vhostblk.disk.limit import Limit
from vhostblk.disk.log import Log
from vhostblk.disk.offset import Offset
from vhostblk.disk.partition import Partition
from vhostblk.disk.pause import Pause
from vhostblk.disk.record import Record
from vhostblk.disk.stats import Stats
from vhostblk.disk.truncate import Truncate
from vhostblk.disk.verify import Verify
from vhostblk.disk.zeroes import Zeroes

__all__ = [
    "Cache",
    "Cow",
    "Cut",
    "Delay",
    "Error",
    "Layer",
    "Limit",
    "Log",
    "Offset",
    "Partition",
    "Pause",
    "Record",
    "Stats",
    "Truncate",
    "Verify",
    "Zeroes",
]
