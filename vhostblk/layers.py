"""
Layers to put in front of any disk: ``Pause(Ram(1 << 20))``.

One a line, in the order of the alphabet.
"""

from vhostblk.disk.cache import Cache
from vhostblk.disk.cow import Cow
from vhostblk.disk.cut import Cut
from vhostblk.disk.layer import Layer
from vhostblk.disk.pause import Pause
from vhostblk.disk.verify import Verify
from vhostblk.disk.zeroes import Zeroes

__all__ = [
    "Cache",
    "Cow",
    "Cut",
    "Layer",
    "Pause",
    "Verify",
    "Zeroes",
]
