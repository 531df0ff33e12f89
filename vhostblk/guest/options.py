"""How a guest of a test is made: what it asks for, and what the back-end must have for that."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vhostblk.guest.confidential import Kind
from vhostblk.guest.errors import GuestError
from vhostblk.guest.guest import Guest
from vhostblk.guest.iommu import Flush
from vhostblk.guest.negotiate import DEFAULT_FEATURES
from vhostblk.spec import virtio_ring as vr


class NotOfferedError(GuestError):
    """The back-end is sound, but does not offer what was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOptions:
    """
    A guest that was not connected yet; as text it is the id of a test.

    Args:
        packed: Packed rings.
        in_order: Requests are used in the order in which they were made.
        event_idx: EVENT_IDX, if it is offered; False: never.
        indirect: Indirect descriptors, if they are offered; False: never.
        queues: How many.
        queue_size: Descriptors of each.
        base: Where the rings begin (see ``QueueOptions``); ``None``: at the start.
        confidential: ``sev``, ``snp``, ``tdx`` or ``bounced``.
        iommu: ``page``, ``aligned`` or ``global``: behind an IOMMU that flushes so.
        timeout: Seconds a message or a request may take.
    """

    packed: bool = False
    in_order: bool = False
    event_idx: bool = True
    indirect: bool = True
    queues: int = 1
    queue_size: int = 128
    base: int | None = None
    confidential: Kind | None = None
    iommu: Flush | None = None
    timeout: float = 10.0

    def connect(self, path: Path) -> Guest:
        """
        Connect to a back-end and start the device.

        Args:
            path: Its socket.

        Raises:
            NotOfferedError: It has not what these options need.
            GuestError: It is not there, or does not do as it should.
        """
        if missing := self.lacks(path):
            raise NotOfferedError(f"the back-end offers no {', '.join(missing)}")
        features = DEFAULT_FEATURES
        features &= ~(0 if self.event_idx else vr.F_EVENT_IDX)
        features &= ~(0 if self.indirect else vr.F_INDIRECT_DESC)
        return Guest.connect(
            path,
            queues=self.queues,
            queue_size=self.queue_size,
            base=self.base,
            packed=self.packed,
            in_order=self.in_order,
            features=features,
            confidential=self.confidential,
            iommu=self.iommu,
            timeout=self.timeout,
        )

    def lacks(self, path: Path) -> list[str]:
        """Return what a back-end does not offer of what these options need, in words."""
        needs = self._needs()
        if not needs and self.queues == 1:
            return []
        with Guest.connect(path, start=False, timeout=self.timeout) as first:
            offered, queues = first.agreement.offered, first.agreement.max_queues
        missing = [name for bit, name in needs if not offered & bit]
        return missing + ([f"{self.queues} queues"] if queues < self.queues else [])

    def __str__(self) -> str:
        return "-".join(self._words())

    def _needs(self) -> list[tuple[int, str]]:
        needs = [
            (self.packed, vr.F_RING_PACKED, "packed rings"),
            (self.in_order, vr.F_IN_ORDER, "IN_ORDER"),
            (
                self.iommu is not None or self.confidential is not None,
                vr.F_ACCESS_PLATFORM,
                "ACCESS_PLATFORM",
            ),
        ]
        return [(bit, name) for asked, bit, name in needs if asked]

    def _words(self) -> Iterator[str]:
        yield "packed" if self.packed else "split"
        if self.in_order:
            yield "in-order"
        if not self.event_idx:
            yield "no-event-idx"
        if not self.indirect:
            yield "no-indirect"
        if self.queues > 1:
            yield f"{self.queues}-queues"
        if self.queue_size != GuestOptions().queue_size:
            yield f"{self.queue_size}-descriptors"
        if self.confidential is not None:
            yield str(self.confidential)
        if self.iommu is not None:
            yield f"iommu-{self.iommu}"


RINGS = tuple(
    GuestOptions(packed=packed, event_idx=event_idx, indirect=indirect, in_order=in_order)
    for packed in (False, True)
    for event_idx, indirect, in_order in (
        (True, True, False),
        (False, True, False),
        (True, False, False),
        (True, True, True),
    )
)
"""Rings of every kind, with one queue."""
