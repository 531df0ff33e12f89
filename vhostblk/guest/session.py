"""
The life of the device: start, stop, reboot, plug memory, go on over another connection.

The order of messages is QEMU's, as recorded from QEMU 10; a back-end that counts on another order
would fail there too.
"""

from collections.abc import Sequence

from vhostblk.guest import wire
from vhostblk.guest.channel import BackendChannel
from vhostblk.guest.dirty import DirtyLog
from vhostblk.guest.dma import Dma
from vhostblk.guest.errors import GuestError
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.iommu import Iommu
from vhostblk.guest.kept import Kept
from vhostblk.guest.layout import Region
from vhostblk.guest.link import Link
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.negotiate import Agreement, Wanted
from vhostblk.guest.queue import Queue
from vhostblk.guest.remapped import RingMap
from vhostblk.guest.rings import QueueOptions
from vhostblk.guest.shape import RingAddresses, RingFeatures
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import (
    VHOST_F_LOG_ALL,
    VHOST_USER_F_PROTOCOL_FEATURES,
    DeviceStatus,
    ProtocolFeature,
    VringAddrFlag,
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
    A device as the back-end knows it.

    Args:
        frontend: A fresh connection; owned.
        memory: The RAM; stays the caller's.
        wanted: Features to agree on, and how many queues.
        queue_options: Of every queue.
        dma: How the device is shown memory.
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
        dma: Dma,
        *,
        iommu: Iommu | None = None,
    ) -> None:
        self.dma = dma
        """What rings are made with, from the next ``boot`` on."""
        self.rings: RingMap | None = None if iommu is None else RingMap(iommu)
        """Where an IOMMU shows the rings, if there is one."""
        self.memory = memory
        self.queues: list[Queue] = []
        self.inflight = Kept()
        """The inflight region."""
        self._wanted = wanted
        self._options = queue_options
        self._started: list[int] = []
        self._in_use: Sequence[int] | None = None
        self._bases: dict[int, int] = {}
        self.link = self.open_link(frontend)
        """The connection."""
        self.features = self.link.agreement.features
        """What the driver acknowledges at each start."""
        try:
            for index, signals in enumerate(self.link.signals):
                self.queues.append(
                    Queue.create(
                        index,
                        memory,
                        queue_options,
                        features=self.ring_features,
                        dma=dma,
                        signals=signals,
                    )
                )
            self._use(self.link)
            self.capacity = self._read_capacity()
            """Sectors, when it was connected; ``None`` without CONFIG."""
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up and give everything back but the memory; again is harmless."""
        if self.rings is not None:
            self.rings.iommu.unplug()
        self.link.close()
        self.inflight.drop()
        while self.queues:
            self.queues.pop().close()

    @property
    def frontend(self) -> FrontEnd:
        """Return the front-end's end of the connection."""
        return self.link.frontend

    @property
    def channel(self) -> BackendChannel:
        """Return the back-end's own channel."""
        return self.link.channel

    @property
    def agreement(self) -> Agreement:
        """Return what was agreed on."""
        return self.link.agreement

    @property
    def indirect(self) -> bool:
        """Tell whether INDIRECT_DESC is acknowledged."""
        return bool(self.features & vr.F_INDIRECT_DESC)

    @property
    def _acknowledged(self) -> int:
        """Return what the front-end makes of it."""
        return self.features & ~self._wanted.personality.hides

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
        self._in_use = queues
        self.frontend.set_features(self._acknowledged)
        self.link.set_status(DeviceStatus.FEATURES_OK)
        self.inflight.share(self.link, self.queues)
        for queue in self.queues:
            self.frontend.set_vring_call(queue.index, queue.call)
        self.frontend.set_features(self._acknowledged)  # QEMU sends it twice
        self.link.set_status(DeviceStatus.FEATURES_OK)
        self.link.send_memory(self.memory)
        for index in range(len(self.queues)) if queues is None else queues:
            self.set_up_queue(index)
        if self.rings is not None:
            self.rings.iommu.plug(self.frontend, self.channel)
        self.enable(enable=True)
        if self.rings is not None:
            for queue in self.queues:
                self.rings.tell(queue.index)
        self.link.set_status(DRIVER_READY)

    def set_up_queue(self, index: int) -> None:
        """Send NUM, BASE, ADDR and KICK of one queue."""
        queue = self.queues[index]
        if self.rings is not None:
            self.rings.show(index, queue.ring.addresses, queue.ring.shape)
        self.frontend.set_vring_num(index, queue.ring.shape.size)
        self.frontend.set_vring_base(index, self._bases.get(index, queue.base))
        self._send_addresses(index)
        self.frontend.set_vring_kick(index, queue.kick)
        self._started.append(index)

    def _send_addresses(self, index: int, flags: int = 0) -> None:
        """Say where the device finds a ring: UVAs, or IOVAs behind an IOMMU."""
        at = self.queues[index].ring.addresses
        if self.rings is None:
            uva, log = self.memory.uva, at.used
            shown = RingAddresses(desc=uva(at.desc), avail=uva(at.avail), used=uva(at.used))
        else:
            shown = self.rings.shown(index)
            log = shown.used  # QEMU has no other address for the log either
        self.frontend.set_vring_addr(
            wire.VringAddr(
                index=index,
                desc=shown.desc,
                used=shown.used,
                avail=shown.avail,
                log=log,
                flags=flags,
            )
        )

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
        self.link.clear_status()
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
        if self.link.agreed(ProtocolFeature.RESET_DEVICE):
            for _ in range(RESETS):
                self.frontend.reset_device()
        self._bases.clear()
        self.inflight.drop()

    def stop_queue(self, index: int) -> int:
        """Stop one queue, of which the driver forgets everything; return its base."""
        base = self.frontend.get_vring_base(index)
        self._started.remove(index)
        self._bases.pop(index, None)
        return base

    def restart_queue(self, index: int, options: QueueOptions | None) -> None:
        """Start one queue on a new ring, after ``stop_queue``; the others never noticed."""
        queue = self.queues[index]
        queue.replace_ring(options or queue.options, features=self.ring_features, dma=self.dma)
        self.set_up_queue(index)

    def start_logging(self, log: DirtyLog) -> None:
        """
        Have the device mark what it writes, while it runs.

        Raises:
            GuestError: It cannot, refused or did not answer.
        """
        if not self.link.agreed(ProtocolFeature.LOG_SHMFD):
            raise GuestError("vhost-user backend lacks VHOST_USER_PROTOCOL_F_LOG_SHMFD feature")
        if not self.agreement.offered & VHOST_F_LOG_ALL:
            raise GuestError("vhost lacks VHOST_F_LOG_ALL feature")
        self.frontend.set_log_base(log.fd, log.size)
        self._log_all(VHOST_F_LOG_ALL)

    def stop_logging(self) -> None:
        """Have it mark nothing any more."""
        self._log_all(0)

    def _log_all(self, feature: int) -> None:
        self.frontend.set_features(self._acknowledged | feature)
        self.link.set_status(DeviceStatus.FEATURES_OK)
        for index in self._started:
            self._send_addresses(index, VringAddrFlag.LOG if feature else 0)

    def go_on(self, link: Link) -> None:
        """
        Go on over another connection, with another back-end, after ``stop``.

        Raises:
            GuestError: It refused or did not answer.
        """
        self.inflight.drop()  # it is not migrated
        self._go_on(link)

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

    def open_link(self, frontend: FrontEnd) -> Link:
        """Negotiate over another connection, to ``resume`` there."""
        return Link(frontend, self._wanted, nonblocking_kick=self._options.nonblocking_kick)

    def resume(self, link: Link) -> None:
        """
        Go on over another connection after the back-end died, as QEMU does.

        What is in flight stays so: the rings are as they were, and the inflight region is handed
        over.  The base of a split ring is its used index, that of a packed one what was known
        last.

        Args:
            link: Where to; owned.

        Raises:
            GuestError: The back-end lacks what the driver has, refused or did not answer.
        """
        for queue in self.queues:
            known = self._bases.get(queue.index, queue.base)
            self._bases[queue.index] = queue.ring.lost_base(known)
        self._go_on(link)

    def _go_on(self, link: Link) -> None:
        if self.rings is not None:
            self.rings.iommu.unplug()
        self.link.close()
        self._use(link)
        if lost := self.features & ~link.agreement.offered:
            raise GuestError(f"the back-end does not offer feature bits {lost:#x} any more")
        self._started.clear()
        self.start(self._in_use)

    def add_region(self, region: Region) -> None:
        """Plug RAM in while the device runs."""
        self.memory.add_region(region)
        self.link.send_memory(self.memory)

    def remove_region(self, gpa: int) -> None:
        """
        Unplug RAM while the device runs.

        Args:
            gpa: First address of the region.

        Raises:
            GuestError: No region begins there, something in it is allocated (nothing was sent), or
                the back-end refused.
        """
        self.link.take_memory(self.memory, self.memory.removable(gpa))
        self.memory.remove_region(gpa)

    def _use(self, link: Link) -> None:
        self.link = link
        for queue, signals in zip(self.queues, link.signals, strict=True):
            queue.signals = signals
            queue.hangup_fd = link.frontend.connection.fileno()

    def _read_capacity(self) -> int | None:
        if not self.link.agreed(ProtocolFeature.CONFIG):
            return None
        return int.from_bytes(self.frontend.get_config(0, CONFIG_BYTES)[:8], "little")
