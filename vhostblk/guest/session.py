"""
The life of the device on one connection: negotiate, start, stop, reboot, plug memory.

The order of messages is QEMU's, as recorded from QEMU 10; a back-end that counts on another order
would fail there too.
"""

from collections.abc import Sequence

from vhostblk.guest import wire
from vhostblk.guest.channel import BackendChannel
from vhostblk.guest.dma import Dma
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.iommu import Iommu
from vhostblk.guest.layout import Region
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.negotiate import Wanted, negotiate
from vhostblk.guest.queue import Queue
from vhostblk.guest.remapped import RingMap
from vhostblk.guest.rings import QueueOptions
from vhostblk.guest.shape import RingAddresses, RingFeatures
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import (
    VHOST_USER_F_PROTOCOL_FEATURES,
    DeviceStatus,
    ProtocolFeature,
)

CONFIG_BYTES = 57
"""What QEMU asks for as soon as it is connected: up to write_zeroes_may_unmap."""
RESETS = 3
"""How often QEMU sends RESET_DEVICE when the machine is reset."""
DRIVER_READY = (
    DeviceStatus.ACKNOWLEDGE
    | DeviceStatus.DRIVER
    | DeviceStatus.FEATURES_OK
    | DeviceStatus.DRIVER_OK
)


class Session:
    """
    A device as the back-end knows it on this connection.

    Args:
        frontend: A fresh connection; owned.
        memory: The RAM; stays the caller's.
        wanted: Features to agree on, and how many queues.
        queue_options: Of every queue.
        dma: How the device is shown memory; ``None``: as it is.
        iommu: What is in front of the device, and of its rings.

    Raises:
        GuestError: The back-end does not agree; nothing is left open.
    """

    def __init__(  # noqa: PLR0913 - the parts of a machine; one caller
        self,
        frontend: FrontEnd,
        memory: GuestMemory,
        wanted: Wanted,
        queue_options: QueueOptions,
        dma: Dma | None = None,
        *,
        iommu: Iommu | None = None,
    ) -> None:
        self.frontend = frontend
        self.dma = dma
        """What rings are made with, from the next ``boot`` on."""
        self.rings: RingMap | None = None if iommu is None else RingMap(iommu)
        """Where an IOMMU shows the rings, if there is one."""
        self._hidden = wanted.personality.hides
        self.memory = memory
        self.channel = BackendChannel(frontend.connection.timeout)
        self.queues: list[Queue] = []
        self._started: list[int] = []
        self._bases: dict[int, int] = {}
        self._known_regions: list[Region] = []
        try:
            self.agreement = negotiate(frontend, wanted, self.channel)
            self.features = self.agreement.features
            """What the driver acknowledges at each start."""
            for index in range(wanted.queues):
                self._make_queue(index, queue_options)
            self.capacity = self._read_capacity()
            """Sectors, when it was connected; ``None`` without CONFIG."""
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up and give everything back but the memory; again is harmless."""
        if self.rings is not None:
            self.rings.iommu.unplug()
        self.frontend.close()
        self.channel.close()
        while self.queues:
            self.queues.pop().close()

    @property
    def indirect(self) -> bool:
        """Tell whether INDIRECT_DESC is acknowledged."""
        return bool(self.features & vr.F_INDIRECT_DESC)

    @property
    def ring_features(self) -> RingFeatures:
        """Return what is acknowledged about rings."""
        return RingFeatures.of(self.features)

    def start(self, queues: Sequence[int] | None = None) -> None:
        """
        Start the device, from scratch or from where ``stop`` left it.

        Args:
            queues: Which queues the driver uses; ``None`` for all.  The others are enabled as
                well, as QEMU does, but never set up.

        Raises:
            GuestError: The back-end refused or did not answer.
        """
        acknowledged = self.features & ~self._hidden
        self.frontend.set_features(acknowledged)
        self._set_status(DeviceStatus.FEATURES_OK)
        for queue in self.queues:
            self.frontend.set_vring_call(queue.index, queue.call)
        self.frontend.set_features(acknowledged)  # QEMU sends it twice
        self._set_status(DeviceStatus.FEATURES_OK)
        self.send_memory()
        for index in range(len(self.queues)) if queues is None else queues:
            self.set_up_queue(index)
        if self.rings is not None:
            self.rings.iommu.plug(self.frontend, self.channel)
        self.enable(enable=True)
        if self.rings is not None:
            for queue in self.queues:
                self.rings.tell(queue.index)
        self._set_status(DRIVER_READY)

    def set_up_queue(self, index: int) -> None:
        """Send NUM, BASE, ADDR and KICK of one queue."""
        queue = self.queues[index]
        addresses = self._shown(queue)
        self.frontend.set_vring_num(index, queue.ring.shape.size)
        self.frontend.set_vring_base(index, self._bases.get(index, queue.base))
        self.frontend.set_vring_addr(
            wire.VringAddr(
                index=index,
                desc=addresses.desc,
                used=addresses.used,
                avail=addresses.avail,
                log=queue.ring.addresses.used,
            )
        )
        self.frontend.set_vring_kick(index, queue.kick)
        self._started.append(index)

    def _shown(self, queue: Queue) -> RingAddresses:
        """Return where the device finds a ring: UVAs, or IOVAs behind an IOMMU."""
        at = queue.ring.addresses
        if self.rings is not None:
            return self.rings.show(queue.index, at, queue.ring.shape)
        uva = self.memory.uva
        return RingAddresses(desc=uva(at.desc), avail=uva(at.avail), used=uva(at.used))

    def enable(self, *, enable: bool) -> None:
        """Send SET_VRING_ENABLE for all queues, if there is such a message in this session."""
        if self.features & VHOST_USER_F_PROTOCOL_FEATURES:
            for queue in self.queues:
                self.frontend.set_vring_enable(queue.index, enable=enable)

    def stop(self) -> dict[int, int]:
        """
        Stop the device; requests in flight may be done afterwards.

        Returns:
            The base of each queue that was started; ``start`` goes on from there.

        Raises:
            GuestError: The back-end refused or did not answer.
        """
        self.enable(enable=False)
        stopped = {index: self.frontend.get_vring_base(index) for index in self._started}
        if self.rings is not None:
            self.rings.iommu.unplug()
        self._bases.update(stopped)
        self._started.clear()
        if self._agreed(ProtocolFeature.STATUS):
            self.frontend.set_status(0)
        return stopped

    def shut_down(self) -> None:
        """
        Stop and reset; the back-end keeps its memory table.

        Raises:
            GuestError: The back-end refused or did not answer.
        """
        self.stop()
        if self.rings is not None:
            self.rings.forget()
        if self._agreed(ProtocolFeature.RESET_DEVICE):
            for _ in range(RESETS):
                self.frontend.reset_device()
        self._bases.clear()

    def boot(
        self,
        features: int | None,
        queue_options: QueueOptions | None,
        queues: Sequence[int] | None = None,
    ) -> None:
        """
        Start on new rings, after ``shut_down``.

        Args:
            features: What the next driver acknowledges of what is offered; ``None``: the same.
            queue_options: Of the new rings; ``None``: as before.
            queues: Which queues the next driver uses; ``None``: all.

        Raises:
            GuestError: The back-end refused or did not answer.
        """
        if features is not None:
            # Bit 30 is the front-end's, the driver never sees it.
            kept = self.features & VHOST_USER_F_PROTOCOL_FEATURES
            self.features = self.agreement.offered & features | kept
        for queue in self.queues:
            queue.replace_ring(
                queue_options or queue.options, features=self.ring_features, dma=self.dma
            )
        self.start(queues)

    def send_memory(self) -> None:
        """Tell the back-end of regions it does not know, by slots or by a whole table."""
        mappings = self.memory.mappings
        regions = [mapping.region for mapping in mappings]
        if regions == self._known_regions:
            return
        if self._agreed(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            for mapping in mappings:
                if mapping.region not in self._known_regions:
                    self.frontend.add_mem_reg(mapping)
        else:
            self.frontend.set_mem_table(mappings)
        self._known_regions = regions

    def add_region(self, region: Region) -> None:
        """Plug RAM in while the device runs."""
        self.memory.add_region(region)
        self.send_memory()

    def remove_region(self, gpa: int) -> None:
        """
        Unplug RAM while the device runs.

        Args:
            gpa: First address of the region.

        Raises:
            GuestError: No region begins there, something in it is allocated (nothing was sent), or
                the back-end refused.
        """
        mapping = self.memory.removable(gpa)
        rest = [m for m in self.memory.mappings if m is not mapping]
        if self._agreed(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            self.frontend.rem_mem_reg(mapping)
        else:
            self.frontend.set_mem_table(rest)
        self._known_regions = [m.region for m in rest]
        self.memory.remove_region(gpa)

    def _make_queue(self, index: int, options: QueueOptions) -> None:
        queue = Queue.create(index, self.memory, options, features=self.ring_features, dma=self.dma)
        queue.hangup_fd = self.frontend.connection.fileno()
        self.queues.append(queue)
        # Long before SET_FEATURES: QEMU does so as soon as it is connected.
        self.frontend.set_vring_call(index, queue.call)
        self.frontend.set_vring_err(index, queue.err)

    def _set_status(self, bits: DeviceStatus) -> None:
        if self._agreed(ProtocolFeature.STATUS):
            status = self.frontend.get_status()
            if bits & ~status:
                self.frontend.set_status(status | bits)

    def _read_capacity(self) -> int | None:
        if not self._agreed(ProtocolFeature.CONFIG):
            return None
        return int.from_bytes(self.frontend.get_config(0, CONFIG_BYTES)[:8], "little")

    def _agreed(self, feature: ProtocolFeature) -> bool:
        return feature in self.agreement.protocol_features
