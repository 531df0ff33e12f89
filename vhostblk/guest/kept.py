"""The inflight region as a front-end keeps it: from one reset to the next, over back-ends."""

from collections.abc import Sequence

from vhostblk.guest.inflight import Inflight
from vhostblk.guest.link import Link
from vhostblk.guest.queue import Queue
from vhostblk.spec.vhost_user import ProtocolFeature


class Kept:
    """A region, or none yet."""

    def __init__(self) -> None:
        self._region: Inflight | None = None

    @property
    def region(self) -> Inflight | None:
        """Return the region, if there is one."""
        return self._region

    def keep(self, region: Inflight) -> None:
        """Have the next start hand *region* over, which is owned from now on."""
        self.drop()
        self._region = region

    def drop(self) -> None:
        """Forget it."""
        if self._region is not None:
            self._region.close()
        self._region = None

    def share(self, link: Link, queues: Sequence[Queue]) -> None:
        """Hand it over; if there is none have the back-end make it first."""
        if not link.agreed(ProtocolFeature.INFLIGHT_SHMFD):
            return
        if self._region is None:
            size = max(queue.ring.shape.size for queue in queues)
            self._region = link.frontend.get_inflight_fd(len(queues), size)
        link.frontend.set_inflight_fd(self._region)
