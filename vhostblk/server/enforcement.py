"""
``confidential require``: where a front-end's requests may go, start by start.

A tripwire for a guest or a host that is set up wrongly, not protection: whatever the guest shares
the host can read, and what it keeps to itself nobody here can prove.

The table that the queues are given does the enforcing; this file says what is in it, and tells of
what was met.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from enum import Enum

from vhostblk.memory.pages import PageSet
from vhostblk.memory.ranges import Limit, OnViolation, Range, Ranges
from vhostblk.memory.sample import Role, Sample
from vhostblk.memory.window import GuestDma, Locate
from vhostblk.server.log import Log
from vhostblk.server.policy import Confidential
from vhostblk.server.promise import DeviceOptions
from vhostblk.spec.virtio_ring import F_INDIRECT_DESC

TELL_SECONDS = 1.0
"""How often a violation gets a line, whatever the guest does."""
DIRECT = "a guest that does not bounce its requests"
"""Why its queues break, in a fault's few words."""
VIOLATION = "queue %d: a request names %d bytes at %#x (%s), outside the shared ranges: %s%s"
"""What is said of a request."""
_DIRECT = (
    "the guest's requests do not go through a bounce pool: it does not keep its memory to itself, "
    "or its kernel does not know that it should; confidential require serves no such guest"
)
"""What is said of a guest that is not confidential."""
_ROLES = {Role.READABLE: "readable", Role.WRITABLE: "writable", Role.TABLE: "an indirect table"}
_FATES = {
    OnViolation.WARN: "it is served all the same",
    OnViolation.FAIL: "it is not served",
    OnViolation.BREAK: "its queue stops",
}


class Step(Enum):
    """What must be done now."""

    NOTHING = "nothing"
    LIMIT = "hold the queues to the window"
    CONDEMN = "break the queues"


class Enforcement:
    """
    What one front-end's requests are held to.

    Args:
        options: What the operator asks.
        log: For what an operator should know.
        clock: Seconds that only grow.
        features: What the driver has acked, now.
    """

    def __init__(
        self,
        options: DeviceOptions,
        log: Log,
        *,
        clock: Callable[[], float],
        features: Callable[[], int],
    ) -> None:
        self.on = options.confidential is Confidential.REQUIRE
        self._features = features
        self._shared = options.shared_ranges
        self._limit = options.shared_ranges.limit(options.on_violation)
        self._log = log
        self._clock = clock
        self._told_at: float | None = None
        self._untold = 0
        self._begun = self._judged = False
        self.end()

    @property
    def _holds(self) -> bool:
        """
        Return whether the driver is one to be held to anything.

        Firmware shares single pages as it goes, and waits without end for a request that is not
        served.  SeaBIOS and OVMF ack nothing but what they cannot do without; every Linux acks
        indirect descriptors.
        """
        firmware = not self._features() & F_INDIRECT_DESC
        return self.on and (self._shared.firmware_inside or not firmware)

    @property
    def learns(self) -> int:
        """Return how many requests of a start, from the first, are learned from."""
        return self._shared.learn if self.on else 0

    @property
    def learning(self) -> bool:
        """Return whether it is still open where requests may go."""
        return self._holds and self._learned is None

    def begin(self) -> None:
        """Say at a start whom it is that is not held to anything."""
        if self.on and not self._holds and not self._begun:
            self._log.info(
                "a driver without indirect descriptors, as firmware is: its requests may go "
                "anywhere, unless shared ranges say firmware=inside"
            )
        self._begun = True

    def end(self) -> None:
        """End a start: what was learned of it says nothing of the next one."""
        self._begun = False
        self._judged = False
        self._pages = PageSet()
        self._seen: dict[int, int] = {}
        self._learned = None if self.learns else Ranges()

    @property
    def learned(self) -> Sequence[Range] | None:
        """Return what was learned of this start, as (first, behind the last); None: nothing yet."""
        return self._learned.rows if self._learned and self.learns else None

    def recall(self, learned: Sequence[Range]) -> None:
        """Take up what another process has learned of a start that goes on here."""
        self._learned = Ranges(tuple(learned))

    def window(self, rings: Iterable[Range]) -> Limit | None:
        """
        Return where the device may go now; None: everywhere.

        Args:
            rings: Guest physical memory of the rings; their pages are shared, or nothing works.
        """
        if not self._holds or self._learned is None:
            return None
        if self._shared.rings_inside:
            return self._limit
        rings_too = Ranges.of(rings).whole_pages()
        return replace(self._limit, inside=self._limit.inside | self._learned | rings_too)

    def heed(
        self, index: int, samples: Sequence[Sample], locate: Locate, guest_dma: GuestDma
    ) -> Step:
        """
        Look at what was recorded of a queue.

        Args:
            index: Which.
            samples: The next ones, in order.
            locate: Tells where they are in the guest.
            guest_dma: What the guest is seen to be by now, these samples included.

        Returns:
            What to do.
        """
        if not self._holds:
            return Step.NOTHING
        self._tell_of(index, [sample for sample in samples if sample.outside])
        if guest_dma is GuestDma.DIRECT and self._judge() is Step.CONDEMN:
            return Step.CONDEMN  # each time: this queue may have started after the others stopped
        if self._learned is None:
            return self._learn(index, samples, locate)
        return Step.NOTHING

    def _judge(self) -> Step:
        """Say once in a start that the guest does not bounce; return what that means."""
        stops = self._limit.on_violation is not OnViolation.WARN
        if not self._judged:
            self._judged = True
            if stops:
                self._log.error("%s; its queues stop", _DIRECT)
            else:
                self._log.warning("%s, without on-violation warn", _DIRECT)
        return Step.CONDEMN if stops else Step.NOTHING

    def _learn(self, index: int, samples: Sequence[Sample], locate: Locate) -> Step:
        for sample in samples:
            # The first sample of a request shows that the one before it is complete.
            if sample.chain <= self.learns:
                self._seen[index] = sample.chain
            if sum(self._seen.values()) >= self.learns:
                # Samples behind this one are not looked at: their chains' numbers may begin again.
                self._learned = Ranges.of(self._pages.islands(self._pages.span))
                return Step.LIMIT
            for gpa, length in locate(sample.iova, sample.length):
                self._pages.add(gpa, length)
        return Step.NOTHING

    def limited(self) -> None:
        """Say that the queues are held to what was learned, now that they are."""
        rows = self._learned.rows if self._learned else ()
        self._log.info(
            "learned from %d requests: only guest memory %s and the rings are served from now on",
            sum(self._seen.values()),
            ", ".join(f"{start:#x}-{end:#x}" for start, end in rows) or "that is listed",
        )

    def _tell_of(self, index: int, outside: Sequence[Sample]) -> None:
        if not outside:
            return
        now = self._clock()
        if self._told_at is not None and now - self._told_at < TELL_SECONDS:
            self._untold += len(outside)
            return
        sample, others = outside[-1], self._untold + len(outside) - 1
        self._told_at, self._untold = now, 0
        self._log.warning(
            VIOLATION,
            index,
            sample.length,
            sample.iova,
            _ROLES[sample.role],
            _FATES[self._limit.on_violation],
            f"; {others} more like it" if others else "",
        )
