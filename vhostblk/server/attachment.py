"""
What one front-end has of a device: features, status, memory, rings.

The handlers act on this; when the connection ends, `close` leaves nothing of it behind.
"""

import asyncio
import os

from vhostblk.engine.api import Queue
from vhostblk.errors import Refused
from vhostblk.memory.regions import Change, RegionTable
from vhostblk.memory.space import AddressSpace
from vhostblk.server.device import Device
from vhostblk.server.ring import Ring, Terms


class Attachment:
    """
    A front-end's hold on a device.

    Args:
        device: What it is connected to.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.features = 0
        self.status = 0
        self.space = AddressSpace.build(RegionTable())
        self.rings = [self._ring(index) for index in range(device.blk.num_queues)]
        self._channel: int | None = None

    def _ring(self, index: int) -> Ring:
        def broken() -> None:
            self._broken(index)

        def make() -> Queue:
            return self.device.make_queue(index, on_broken=broken)

        seconds = self.device.options.drain_seconds
        return Ring(index, make_queue=make, drain_seconds=seconds, log=self.device.log)

    def _broken(self, index: int) -> None:
        fault = self.rings[index].fault()
        if fault is not None:
            self.device.log.error(
                "queue %d is broken: %s (index %d, value %#x); it waits for a restart",
                index,
                fault.reason,
                fault.index,
                fault.value,
            )

    @property
    def running(self) -> list[Ring]:
        """Return the rings that run."""
        return [ring for ring in self.rings if ring.running]

    @property
    def writethrough(self) -> bool:
        """Whether every write must be stable before its status."""
        return self.device.config.writethrough(self.features)

    @property
    def terms(self) -> Terms:
        """Return what a ring would run by if it started now."""
        return Terms(
            features=self.features,
            space=self.space,
            blk=self.device.blk,
            writethrough=self.writethrough,
        )

    async def install(self, change: Change) -> None:
        """
        Take a new table into use: *adding needs parked; removing needs drained*.

        Args:
            change: As the old table computed it; what it added is released when it is refused.

        Raises:
            Refused: A ring that runs would lose its memory; nothing has changed.
        """
        if not change.added and not change.removed:
            return
        space = AddressSpace.build(change.table)
        try:
            for ring in self.running:
                ring.check(space)
        except Refused:
            for region in change.added:
                region.mapping.release()
            raise
        for region in change.added:
            self.device.guard(region.mapping)
        drain = bool(change.removed)
        await asyncio.gather(*(ring.move(space, drain=drain) for ring in self.running))
        self.space = space
        self.device.bury([region.mapping for region in change.removed])

    async def change_cache(self) -> None:
        """
        Let the rings follow the write cache switch.

        Raises:
            OSError: Earlier writes could not be made stable; the rings go on as before.
        """
        rings = self.running
        drain = self.writethrough
        await asyncio.gather(*(ring.take_back(drain=drain) for ring in rings))
        try:
            if drain:
                await self.device.flush()
            for ring in rings:
                ring.queue.set_blk(self.device.blk, writethrough=self.writethrough)
        finally:
            for ring in rings:
                ring.hand_over()

    async def reset(self) -> None:
        """Stop and disable every ring; memory, channel and protocol features stay."""
        await asyncio.gather(*(ring.reset() for ring in self.rings))
        self.features = 0
        self.status = 0

    def set_channel(self, fd: int) -> None:
        """Take over the socket for our own requests; the one before it is closed."""
        self._close_channel()
        self._channel = fd

    def _close_channel(self) -> None:
        if self._channel is not None:
            os.close(self._channel)
            self._channel = None

    async def close(self) -> None:
        """Drain every queue, drop them, the descriptors and the memory."""
        try:
            # Each to its end, whatever becomes of another.
            ends = (self._close_ring(ring) for ring in self.rings)
            results = await asyncio.gather(*ends, return_exceptions=True)
        finally:
            self._close_channel()
            self.device.bury([region.mapping for region in self.space.table.regions])
            self.space = AddressSpace.build(RegionTable())
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _close_ring(self, ring: Ring) -> None:
        queue = await ring.give_up()
        if queue is not None:
            await self.device.drop_queue(queue)
