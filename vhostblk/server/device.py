"""
What outlives a connection: the disk and its thread, the data plane's share, the cache switch.

A mapping must not go while a request that was given up is still with the disk, nor while the disk
holds on to a view: it is buried here until neither is the case.
"""

import asyncio
import atexit
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vhostblk.blk.config import ConfigSpace
from vhostblk.blk.device import BlkDevice
from vhostblk.blk.features import offered
from vhostblk.disk import carry
from vhostblk.disk.call import run
from vhostblk.disk.grammar import DiskSpec
from vhostblk.engine.api import DeviceEngine, Engine, Queue
from vhostblk.errors import VhostBlkError
from vhostblk.memory.mapping import Mapping
from vhostblk.server.guest_counters import GuestCounters
from vhostblk.server.log import Allowance, Log
from vhostblk.server.promise import DeviceOptions, promise
from vhostblk.server.pump import Before, Pump
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
        share: Its share for this disk.
        pump: The disk and its thread.
        blk: What is promised.
        options: What was asked.
        source: The disk as it was written; None: a program's own object.
        lock_while_running: The disk is to be locked before it is used.
        log: Its log.
    """

    def __init__(  # noqa: PLR0913 - the parts of a device; one caller
        self,
        *,
        engine: Engine,
        share: DeviceEngine,
        pump: Pump,
        blk: BlkDevice,
        options: DeviceOptions,
        source: DiskSpec | None,
        lock_while_running: bool,
        log: Log,
    ) -> None:
        self.source = source
        self.blk = blk
        self.options = options
        self.log = log
        self.config = ConfigSpace(blk)
        self.guest = GuestCounters()
        self.attached: Attached | None = None
        """The front-end that is connected."""
        self.served = False
        """Whether a ring has ever run: then the write cache switch is what its driver has set."""
        self.starts_told = Allowance(burst=STARTS_TOLD, seconds=START_SECONDS)
        self.features = offered(blk, ring=_ring_features(engine, options))
        self.features |= VHOST_USER_F_PROTOCOL_FEATURES
        if options.access_platform:
            # Without it no confidential guest of QEMU's starts; without a vIOMMU it is stripped.
            self.features |= F_ACCESS_PLATFORM
        self.can_inflight, self.can_log = engine.can_inflight, engine.can_log
        if self.can_log:
            self.features |= VHOST_F_LOG_ALL
        self._engine = engine
        self._share = share
        self._pump = pump
        self.troubles = Troubles(options.name, options.on_error, log)
        self.tenure = Tenure(pump, needed=lock_while_running, flush=self.flush, log=log)
        self._down = False
        self._buried: list[Mapping] = []
        self._exhuming: asyncio.TimerHandle | None = None

    @property
    def disk_name(self) -> str:
        """The disk as a person may write it; of a program's own object its class."""
        return type(self._pump.calls.disk).__name__ if self.source is None else str(self.source)

    # ---- queues ---------------------------------------------------------------------------

    def make_queue(self, index: int, *, on_broken: Callable[[], None]) -> Queue:
        """Make queue *index*, served from the start if it is Python that serves it."""
        queue = self._share.queue(index, on_broken=on_broken)
        self.troubles.watch(index, queue)
        if queue.mailbox is not None:
            self._pump.serve(queue.mailbox)
        return queue

    async def drop_queue(self, queue: Queue) -> None:
        """Close a drained queue."""
        self.troubles.forget(queue)
        if queue.mailbox is not None:
            await self._pump.forget(queue.mailbox, seconds=STUCK_SECONDS)
        await queue.close()

    def resume_stalled(self) -> int:
        """Have queues that an error has stopped try again; return how many there were."""
        return self.troubles.resume()

    def revoke(self, queue: Queue) -> None:
        """
        Take guest memory from requests of *queue* that were given up: it is the guest's again.

        What a kernel still reads into it cannot be stopped; see "bounded" in the architecture.
        """
        if queue.mailbox is not None:
            self._pump.revoke(queue.mailbox)

    async def flush(self) -> None:
        """
        Make every completed write stable.

        Raises:
            OSError: The disk could not, or not in time.
        """
        await self._pump.flush(seconds=self.options.drain_seconds)

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
        return carry.shared(self._pump.calls.disk)

    async def put_down(self) -> bytes:
        """
        Have the disk flush, save what it holds, and close; `take_up` undoes that.

        Raises:
            OSError: It could not, or not in time.
            VhostBlkError: It saves nothing that could be carried.
        """
        calls = self._pump.calls

        async def put_down() -> bytes:
            saved = await carry.save(calls.disk)
            await run(calls.close)
            return saved

        await self.flush()
        saving = self._pump.on_thread(put_down())
        saved = await asyncio.wait_for(saving, self.options.drain_seconds)
        self._down = True
        return saved

    async def take_up(self, saved: bytes) -> None:
        """Open a disk that was put down, with what it has saved."""
        calls = self._pump.calls

        async def take_up() -> None:
            await carry.restore(calls.disk, data=saved)
            await run(calls.open)

        await self._pump.on_thread(take_up())
        self._down = False

    async def leave(self) -> None:
        """Let go of the disk, which another process has; no front-end is attached any more."""
        self._exhume()
        await self._share.close()
        await (self._pump.end() if self._down else self._pump.close(seconds=STUCK_SECONDS))

    # ---- guest memory ---------------------------------------------------------------------

    def guard(self, mapping: Mapping) -> None:
        """Have the data plane survive the loss of a mapping's pages."""
        try:
            unguard = self._engine.guard(mapping.address, mapping.length, mapping.page_size)
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
        return self._share.dead() + self._pump.kept()

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
        failure: OSError | None = None
        dead = self.dead()
        seconds = STUCK_SECONDS if dead else self.options.drain_seconds
        try:
            await self._pump.flush(seconds=seconds)
        except OSError as error:
            failure = error
        if dead:
            self._leave_behind(dead)
        await self._share.close()
        await self._pump.close(seconds=seconds)
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


async def open_device(
    disk: object,
    engine: Engine,
    options: DeviceOptions,
    source: DiskSpec | None = None,
    *,
    before: Before | None = None,
) -> Device:
    """
    Open a disk and make a device of it.

    Args:
        disk: Any object that meets the `Disk` contract; closed by the device.
        engine: The data plane.
        options: What the operator asks.
        source: The disk as it was written, if it was.
        before: Done with the disk before it is opened, on its thread.

    Raises:
        VhostBlkError: The disk cannot be had, or not so.
    """
    log = Log(__name__, options.name)
    pump = Pump(disk, log=log, name=options.name)
    opened = await pump.open(before)
    try:
        blk = promise(opened, options)
        share = engine.device(pump.calls.disk)
    except BaseException:
        await pump.close(seconds=options.drain_seconds)
        raise
    return Device(
        engine=engine,
        share=share,
        pump=pump,
        blk=blk,
        options=options,
        source=source,
        lock_while_running=opened.lock_while_running,
        log=log,
    )
