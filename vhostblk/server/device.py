"""
What outlives a connection: the disk and its thread, the data plane's share, the cache switch.

A mapping must not go while a request that was given up is still with the disk, nor while the disk
holds on to a view: it is buried here until neither is the case.
"""

import asyncio
import atexit
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vhostblk.blk.config import ConfigSpace
from vhostblk.blk.device import BlkDevice
from vhostblk.blk.features import offered
from vhostblk.disk.grammar import DiskSpec
from vhostblk.engine.api import Engine, Queue
from vhostblk.errors import VhostBlkError
from vhostblk.memory.mapping import Mapping
from vhostblk.server.backing import Backing, Before, open_backing
from vhostblk.server.guest_counters import GuestCounters
from vhostblk.server.log import Allowance, Log
from vhostblk.server.promise import DeviceOptions, keep, promise
from vhostblk.server.slow import SlowWatch
from vhostblk.server.tenure import Tenure
from vhostblk.server.troubles import Troubles
from vhostblk.spec.vhost_user import VHOST_F_LOG_ALL, VHOST_USER_F_PROTOCOL_FEATURES
from vhostblk.spec.virtio_ring import F_ACCESS_PLATFORM, F_RING_PACKED, F_RING_RESET

if TYPE_CHECKING:  # it knows rings and windows, of which a device has none
    from vhostblk.server.attached import Attached

STARTS_TOLD = 16
START_SECONDS = 10.0
"""So many ends of starts are told of at once, and one more each so many seconds: a guest that does
nothing but reset the device fills no log."""
STUCK_SECONDS = 1.0
"""How long a disk is waited for that has not answered a whole drain long."""
EXHUME_SECONDS = 1.0
"""How often is looked whether buried memory can go."""


def _ring_features(engine: Engine, options: DeviceOptions) -> int:
    bits = engine.ring_features
    if not options.packed:
        bits &= ~F_RING_PACKED
    if not options.ring_reset:
        # QEMU lets the guest have it and tells us of no reset: that queue then hangs, or worse.
        bits &= ~F_RING_RESET
    return bits


class Device:
    """
    A disk that front-ends can be attached to, one at a time.  Made by `open_device`.

    Args:
        engine: The data plane.
        backing: The disk.
        blk: What is promised.
        options: What was asked.
        log: Its log.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        backing: Backing,
        blk: BlkDevice,
        options: DeviceOptions,
        log: Log,
    ) -> None:
        self.backing = backing
        self.blk = blk
        self.options = options
        self.log = log
        self.config = ConfigSpace(blk)
        self.guest = GuestCounters()
        self.attached: Attached | None = None
        """The front-end that is connected."""
        self.served = False
        """Whether a ring has ever run: then the write cache switch is what its driver has set."""
        self.holders: list[Attached] = []
        """The same, and those that are gone and whose queues are not dropped yet."""
        self.hang_up: Callable[[], None] = lambda: None
        """Ends the connection of the front-end."""
        self.changing = asyncio.Lock()
        """Held while no front-end may be attached."""
        self.starts_told = Allowance(burst=STARTS_TOLD, seconds=START_SECONDS)
        self.features = offered(blk, ring=_ring_features(engine, options))
        self.features |= VHOST_USER_F_PROTOCOL_FEATURES
        if options.access_platform:
            # Without it no confidential guest of QEMU's starts; without a vIOMMU it is stripped.
            self.features |= F_ACCESS_PLATFORM
        self.can_inflight, self.can_log = engine.can_inflight, engine.can_log
        if self.can_log:
            self.features |= VHOST_F_LOG_ALL
        self.engine = engine
        self.troubles = Troubles(options.name, options.on_error, log)
        self._slow = SlowWatch(options.slow_request, log, time.monotonic)
        waits = backing.opened.lock_while_running
        self.tenure = Tenure(backing, needed=waits, flush=self.flush, log=log)
        self.replaced = False
        """Whether the disk is another one than it was opened with."""
        self._down = False
        self._buried: list[Mapping] = []
        self._exhuming: asyncio.TimerHandle | None = None

    # ---- the disk -------------------------------------------------------------------------

    def make_queue(
        self, index: int, *, on_broken: Callable[[], None], backing: Backing | None = None
    ) -> Queue:
        """Make queue *index*; for the disk there is, or for the one in *backing*."""
        queue = (backing or self.backing).make_queue(index, on_broken=on_broken)
        self.watch(index, queue)
        return queue

    def watch(self, index: int, queue: Queue) -> None:
        """Tell of what goes wrong in a queue that serves *index* from now on."""
        self.troubles.watch(index, queue)
        self._slow.watch(index, queue)

    async def drop_queue(self, queue: Queue, backing: Backing | None = None) -> None:
        """Close a drained queue, of the disk there is or of the one in *backing*."""
        self.troubles.forget(queue)
        self._slow.forget(queue)
        await (backing or self.backing).drop_queue(queue, seconds=STUCK_SECONDS)

    def resume_stalled(self) -> int:
        """Have queues that an error has stopped try again; return how many there were."""
        return self.troubles.resume()

    def revoke(self, queue: Queue) -> None:
        """Take guest memory from requests of *queue* that were given up; see `Backing.revoke`."""
        self.backing.revoke(queue)

    async def flush(self) -> None:
        """
        Make every completed write stable.

        Raises:
            OSError: The disk could not, or not in time.
        """
        await self.backing.flush(seconds=self.options.drain_seconds)

    def resume(self) -> None:
        """
        Heed that a driver goes on which may have begun with another process.

        No message tells what it had set the write cache switch to; while that is not known every
        write is made stable.
        """
        if self.served or not self.config.writeback:
            return
        self.config.writeback = False
        self.log.warning(
            "a driver goes on that another process served: until it sets its write cache again "
            "every write is made stable"
        )

    # ---- for another process that goes on with it -------------------------------------------

    def shared(self) -> tuple[int, ...] | None:
        """
        Return the disk's descriptors, which stay its own; None: it is put down instead.

        Raises:
            VhostBlkError: It cannot be carried over.
        """
        if self.replaced and self.backing.source is None:
            raise VhostBlkError(
                "its disk was replaced, and a new process would serve the one it was started with: "
                "stop and start the server with the new one"
            )
        return self.backing.shared()

    async def put_down(self) -> bytes:
        """
        Have the disk flush, save what it holds, and close; `take_up` undoes that.

        Raises:
            OSError: It could not, or not in time.
            VhostBlkError: It saves nothing that could be carried.
        """
        await self.flush()
        saved = await self.backing.put_down(seconds=self.options.drain_seconds)
        self._down = True
        return saved

    async def take_up(self, saved: bytes) -> None:
        """Open a disk that was put down, with what it has saved."""
        await self.backing.take_up(saved)
        self._down = False

    async def leave(self) -> None:
        """Let go of the disk, which another process has; no front-end is attached any more."""
        self._exhume()
        backing = self.backing
        await (backing.end() if self._down else backing.close(seconds=STUCK_SECONDS))

    # ---- guest memory ---------------------------------------------------------------------

    def guard(self, mapping: Mapping) -> None:
        """Have the data plane survive the loss of a mapping's pages."""
        try:
            unguard = self.engine.guard(mapping.address, mapping.length, mapping.page_size)
        except VhostBlkError as error:
            self.log.warning("guest memory that vanishes would end this process: %s", error)
            return
        mapping.before_unmap(unguard)

    def bury(self, mappings: Sequence[Mapping]) -> None:
        """Release *mappings* as soon as no request and no disk can touch them any more."""
        self._buried.extend(mappings)
        self._exhume()

    def dead(self) -> int:
        """Return how many requests are over for the guest, but not for the disk."""
        return self.backing.dead()

    def _exhume(self) -> None:
        if self._exhuming is not None:
            self._exhuming.cancel()
            self._exhuming = None
        if self._buried and self.dead():
            loop = asyncio.get_running_loop()
            self._exhuming = loop.call_later(EXHUME_SECONDS, self._exhume)
            return
        while self._buried:
            self._buried.pop().release()

    # ---- end ------------------------------------------------------------------------------

    async def close(self) -> None:
        """
        Flush and close the disk; no front-end is attached any more.

        Raises:
            VhostBlkError: Completed writes may not be stable.
        """
        self._exhume()
        if self._down:  # flushed and closed before
            await self.backing.end()
            return
        failure: OSError | None = None
        dead = self.dead()
        seconds = STUCK_SECONDS if dead else self.options.drain_seconds
        try:
            await self.backing.flush(seconds=seconds)
        except OSError as error:
            failure = error
        if dead:
            self._leave_behind(dead)
        await self.backing.close(seconds=seconds)
        if failure is not None:
            raise VhostBlkError(
                f"{self.options.name}: the last flush failed ({failure.strerror}): "
                "writes since the guest's last flush may be lost"
            )

    def _leave_behind(self, dead: int) -> None:
        self.log.error("%d requests never came back from the disk: their memory stays", dead)
        if self._exhuming is not None:
            self._exhuming.cancel()
        # Something may write there as long as the process lives: so must the mappings.
        atexit.register(self._buried.clear)


async def open_device(  # noqa: PLR0913 - as `open_backing`
    disk: object,
    engine: Engine,
    options: DeviceOptions,
    source: DiskSpec | None = None,
    *,
    before: Before | None = None,
    promised: BlkDevice | None = None,
) -> Device:
    """
    Open a disk and make a device of it.

    Args:
        disk: Any object that meets the `Disk` contract; closed by the device.
        engine: The data plane.
        options: What the operator asks.
        source: The disk as it was written, if it was.
        before: Done with the disk before it is opened, on its thread.
        promised: What the device has to keep that another disk has promised.

    Raises:
        VhostBlkError: The disk cannot be had, or not so.
    """
    log = Log(__name__, options.name)
    backing = await open_backing(disk, engine, options, source, log, before=before)
    try:
        blk = promise(backing.opened, options)
        if promised is not None:
            blk = keep(promised, blk)
    except BaseException:
        await backing.close(seconds=options.drain_seconds)
        raise
    return Device(engine=engine, backing=backing, blk=blk, options=options, log=log)
