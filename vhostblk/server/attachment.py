"""
What one front-end has of a device: features, status, memory, rings.

The handlers act on this; when the connection ends, `close` leaves nothing of it behind.
"""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

from vhostblk.engine.api import Miss, OnError, Queue
from vhostblk.memory.locate import locate
from vhostblk.memory.mapping import Mapping
from vhostblk.memory.regions import RegionTable
from vhostblk.memory.sample import Sample
from vhostblk.memory.space import AddressSpace, Cuts, Translation
from vhostblk.protocol.channel import ConfigChange
from vhostblk.server.backing import Backing
from vhostblk.server.detect import Detector
from vhostblk.server.device import Device
from vhostblk.server.enforcement import DIRECT, TELL_SECONDS, Enforcement, Step
from vhostblk.server.inflight import Inflight
from vhostblk.server.iommu import Iommu
from vhostblk.server.keeper import Former, Keeper
from vhostblk.server.misses import Misses
from vhostblk.server.observer import Observer
from vhostblk.server.peer import Peer
from vhostblk.server.policy import Confidential, IommuMode
from vhostblk.server.ring import Ring
from vhostblk.server.status import log_status
from vhostblk.server.terms import Terms
from vhostblk.server.turn import Turn
from vhostblk.spec.vhost_user import VHOST_F_LOG_ALL, ProtocolFeature
from vhostblk.spec.virtio_ring import F_ACCESS_PLATFORM, F_VERSION_1

_TOLD = ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG
"""What a front-end has acked that can be told of a change of the config space."""
_CHANNEL = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK


class Attachment:
    """
    A front-end's hold on a device.

    Args:
        device: What it is connected to.
        peer: Who it is; None: not known.
        after: Done when nothing of the front-end before it is left; its rings run only then.
            None: there is nothing left of it.
    """

    def __init__(
        self,
        device: Device,
        peer: Peer | None = None,
        *,
        after: asyncio.Future[None] | None = None,
    ) -> None:
        self.device = device
        self.peer = peer
        self.features = 0
        self.protocol_features = ProtocolFeature(0)
        self.status = 0
        self.space = AddressSpace.build(RegionTable())
        self._cuts = Cuts(self.space.table)
        self.iommu = Iommu(seconds=device.options.miss_seconds, log=device.log)
        self.turn = Turn(device.tenure, after=after, resume=self._resume, log=device.log)
        self.rings = [self._ring(index) for index in range(device.blk.num_queues)]
        self.lock = asyncio.Lock()
        """Held by a message while it is handled, and by an answer of the IOMMU's."""
        self.inflight = Inflight(
            queues=device.blk.num_queues,
            queue_size=device.options.queue_size,
            guard=device.guard,
            bury=device.bury,
        )
        self.misses = Misses(self, self.rings, self.lock, device.log)
        self.enforcement = Enforcement(
            device.options, device.log, clock=time.monotonic, features=lambda: self.features
        )
        hints = device.options.confidential is not Confidential.OFF
        self.detector = Detector(
            self.rings, lambda: self.terms, device.log, counters=device.guest, hints=hints
        )
        self.observer = self._observer(on=hints)
        self.dirty_log: Mapping | None = None
        """Where its migration looks, if there is one."""
        self._verdicts: set[asyncio.Task[None]] = set()
        self.gone = asyncio.Event()
        """Set when nothing is left of it."""
        device.attached = self
        device.holders.append(self)

    def _observer(self, *, on: bool) -> Observer:
        return Observer(
            self.rings,
            lambda: self.terms,
            saw=self._saw,
            on_end=lambda: log_status(self.device, asked=False),
            on=on,
            first=self.enforcement.learns + 1,
            seconds=TELL_SECONDS if self.enforcement.on else None,
            eager=lambda: self.enforcement.learning,
        )

    def _ring(self, index: int) -> Ring:
        def make() -> Queue:
            return self._make_queue(self.device.backing, index)

        def missed(miss: Miss | None) -> None:
            self.misses.missed(self.rings[index], miss)

        def started() -> None:
            self.device.served = True
            self.turn.begin()
            self.enforcement.begin()
            self.observer.begin(self.rings[index])

        def dead() -> None:
            self.device.revoke(self.rings[index].queue)

        keeper = Keeper(
            index,
            make_queue=make,
            may_run=self.turn.may_run,
            on_dead=dead,
            drain_seconds=self.device.options.drain_seconds,
            log=self.device.log,
        )
        log = self.device.log
        return Ring(index, keeper=keeper, on_miss=missed, on_start=started, log=log)

    def _make_queue(self, backing: Backing, index: int) -> Queue:
        return self.device.make_queue(index, on_broken=lambda: self._broken(index), backing=backing)

    async def _resume(self) -> None:
        """Hand over the queues of rings that were started before they might run."""
        async with self.lock:
            for ring in self.running:
                await ring.keeper.take_back(drain=False)
                ring.keeper.hand_over()

    def _saw(self, ring: Ring, samples: Sequence[Sample]) -> None:
        """Heed what a queue has sampled."""
        self.detector.saw(ring, samples)
        if not self.enforcement.on:
            return
        space = self.observer.space(ring)
        step = self.enforcement.heed(
            ring.index, samples, partial(locate, space), self.observer.window.guest_dma
        )
        if step is not Step.NOTHING:
            verdict = asyncio.ensure_future(self._carry_out(step))
            self._verdicts.add(verdict)
            verdict.add_done_callback(self._carried_out)

    async def _carry_out(self, step: Step) -> None:
        """Hold the running queues to their window, or break them; between two messages."""
        async with self.lock:
            if step is Step.CONDEMN:
                await asyncio.gather(*(ring.condemn(DIRECT) for ring in self.running))
                return
            if not self.running:
                return  # what was learned ended with them
            terms = self.terms
            await asyncio.gather(*(ring.move(terms, drain=False) for ring in self.running))
            self.enforcement.limited()

    def _carried_out(self, verdict: asyncio.Task[None]) -> None:
        self._verdicts.discard(verdict)
        if not verdict.cancelled() and (bug := verdict.exception()) is not None:
            self.device.log.error("a bug of ours, holding queues to their window", exc_info=bug)

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
            self.detector.broken(self.rings[index], fault)

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
            space=self.build(self.space.table) if self.enforcement.on else self.space,
            translated=self.translated() if self._translates else None,
            blk=self.device.blk,
            writethrough=self.writethrough,
            always_translated=self.device.options.iommu is IommuMode.ON,
            required=F_VERSION_1 if self.enforcement.on else 0,
            inflight=self.inflight.area,
            log=self.dirty_log if self.features & VHOST_F_LOG_ALL else None,
        )

    def build(
        self, table: RegionTable, translations: Sequence[Translation] | None = None
    ) -> AddressSpace:
        """Make an address space, limited to what the device may use at all."""
        if self._cuts.table is not table:
            self._cuts = Cuts(table)
        build = partial(AddressSpace.build, table, translations, cuts=self._cuts)
        space = build()
        rings = [one for ring in self.rings for part in ring.lies_in(space) for one in part]
        window = self.enforcement.window(rings)
        return space if window is None else build(window=window)

    async def log_into(self, log: Mapping) -> None:
        """
        Have queues mark another dirty log; when this returns none marks the one before.

        Args:
            log: Its memory, owned from here on; used while the driver's features have LOG_ALL.
        """
        old, self.dirty_log = self.dirty_log, log
        await self.relog()
        if old is not None:
            old.release()

    async def relog(self) -> None:
        """Let the rings that run follow what has changed of the dirty log."""
        terms = self.terms
        await asyncio.gather(*(ring.relog(terms) for ring in self.running))

    async def reset(self) -> None:
        """Stop and disable every ring; memory, channel and protocol features stay."""
        await asyncio.gather(*(ring.reset() for ring in self.rings))
        await self.stopped()
        self.features = 0
        self.status = 0

    # ---- the IOMMU ------------------------------------------------------------------------

    @property
    def _translates(self) -> bool:
        """Whether the driver's addresses go through an IOMMU, if its rings' do."""
        acked = self.features & F_ACCESS_PLATFORM and _CHANNEL in self.protocol_features
        wanted = self.device.options.iommu is not IommuMode.OFF
        return wanted and bool(acked) and self.iommu.can_ask

    def translated(self) -> AddressSpace:
        """Return the address space behind the IOMMU, as far as it is known now."""
        return self.build(self.space.table, self.iommu.iotlb.translations)

    async def stopped(self) -> None:
        """
        Heed that rings may have stopped: begin anew when nothing runs.

        Then the disk is at rest, and if it is to be shared, somebody else's: when this returns
        the other end of a migration may start.

        QEMU invalidates nothing of a device that is stopped, and the next driver uses the same
        IOVAs for other pages.
        """
        if not self.running:
            self.observer.end(drained=True)
        for ring in self.rings:
            if not ring.running:
                self.iommu.forget(ring.index)
        if not self.running and any(ring.counters().dead for ring in self.rings):
            self.iommu.iotlb.drop()
        elif not self.running:
            self.iommu.iotlb.clear()
        if not self.running:
            self.enforcement.end()
            await self.turn.end()

    @property
    def tracks(self) -> bool:
        """Whether its rings note in an inflight region what they take."""
        return self.inflight.area is not None

    @property
    def logs(self) -> bool:
        """Whether what is written is logged."""
        return self.dirty_log is not None and bool(self.features & VHOST_F_LOG_ALL)

    # ---- changes of the device ------------------------------------------------------------

    async def pause(self, *, drain: bool, hold: bool = False) -> None:
        """Take the queues of all rings that run; see `Attached.pause`."""
        if hold and self.device.options.on_error is not OnError.REPORT:
            terms = self.terms
            await asyncio.gather(*(ring.rest(terms) for ring in self.running))
            return
        await asyncio.gather(*(ring.keeper.take_back(drain=drain) for ring in self.running))

    def go_on(self) -> None:
        """Hand them to their workers again."""
        terms = self.terms
        for ring in self.running:
            ring.go_on(terms)

    def set_blk(self) -> None:
        """Have paused rings check requests by what the device promises now."""
        for ring in self.running:
            ring.queue.set_blk(self.device.blk, writethrough=self.writethrough)

    async def exchange(self, backing: Backing) -> list[Queue]:
        """Go on with queues for another disk, while all is paused and drained."""
        terms = self.terms
        made: list[Queue] = []
        formers: list[tuple[Ring, Former]] = []
        try:
            for ring in self.rings:
                if ring.keeper.made:
                    made.append(self._make_queue(backing, ring.index))
                    formers.append((ring, ring.exchange(made[-1], terms)))
        except BaseException:
            for ring, former in formers:
                ring.keeper.put_back(former)
            for queue in made:
                await self.device.drop_queue(queue, backing)
            for ring in (one for one in self.rings if one.keeper.made):
                self.device.watch(ring.index, ring.queue)
            raise
        return [former.queue for _, former in formers]

    def retire(self) -> None:
        """Never run any of the queues again."""
        for ring in self.rings:
            ring.keeper.retired = True

    def tell_config(self) -> bool:
        """Have the front-end read the config space again; whether it can be told."""
        channel = self.iommu.channel if _TOLD in self.protocol_features else None
        return channel is not None and channel.tell(ConfigChange())

    # ---- end ------------------------------------------------------------------------------

    def leave(self) -> None:
        """Heed that the front-end is gone: watch it no more, ask it nothing."""
        self.turn.leave()
        self.detector.close()
        self.observer.end(drained=False)
        for verdict in self._verdicts:
            verdict.cancel()
        if self.device.attached is self:
            self.device.attached = None
        self.iommu.close()  # first: an answer must not go to a queue that is being dropped

    async def close(self) -> None:
        """Behind `leave`: drain every queue, drop them, the descriptors and the memory."""
        async with self.lock:  # a change of the device is done with these queues first
            try:
                await self._close_rings()
            finally:
                self.device.holders.remove(self)
                self.gone.set()

    async def _close_rings(self) -> None:
        try:
            # Each to its end, whatever becomes of another.
            ends = (self._close_ring(ring) for ring in self.rings)
            results = await asyncio.gather(*ends, return_exceptions=True)
        finally:
            self.device.bury([region.mapping for region in self.space.table.regions])
            self.space = AddressSpace.build(RegionTable())
            self.inflight.close()
            if self.dirty_log is not None:
                self.dirty_log.release()
            await self.turn.end()
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _close_ring(self, ring: Ring) -> None:
        queue = await ring.keeper.give_up()
        if queue is None:
            return
        done = ring.counters()
        self.device.guest.faults += done.faults
        self.device.guest.outside += done.outside
        # The C core fails a file's requests without a word: here an operator learns of a full disk.
        if done.errors:
            self.device.log.warning(
                "queue %d: %d requests ended with an I/O error", ring.index, done.errors
            )
        await self.device.drop_queue(queue)
