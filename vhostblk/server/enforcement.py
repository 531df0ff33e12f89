"""
``confidential require``: where a front-end's requests may go, start by start.

A tripwire for a guest or a host that is set up wrongly, not protection: whatever the guest shares
the host can read, and what it keeps to itself nobody here can prove.
"""

from collections.abc import Iterable
from dataclasses import replace

from vhostblk.memory.ranges import Limit, Range, Ranges
from vhostblk.server.policy import Confidential
from vhostblk.server.promise import DeviceOptions


class Enforcement:
    """
    What one front-end's requests are held to.

    Args:
        options: What the operator asks.
    """

    def __init__(self, options: DeviceOptions) -> None:
        self.on = options.confidential is Confidential.REQUIRE
        self._shared = options.shared_ranges
        self._limit = options.shared_ranges.limit(options.on_violation)

    def window(self, rings: Iterable[Range]) -> Limit | None:
        """
        Return where the device may go now; None: everywhere.

        Args:
            rings: Guest physical memory of the rings; their pages are shared, or nothing works.
        """
        if not self.on or self._shared.learn:
            return None
        if self._shared.rings_inside:
            return self._limit
        return replace(self._limit, inside=self._limit.inside | Ranges.of(rings).whole_pages())
