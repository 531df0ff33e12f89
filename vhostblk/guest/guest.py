"""
The fake guest: a front-end, RAM and a virtio-blk driver behind one object.

``Guest.connect`` does what QEMU and a Linux driver do between power-on and the first request;
``read``, ``write`` and the others are one request each.  Whatever these do not do is done with the
parts, which are public: ``frontend`` for messages, ``memory`` for RAM, ``queues`` for rings.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from vhostblk.guest.blk import BlkTicket, Completion, Framing, Request
from vhostblk.guest.channel import BackendChannel
from vhostblk.guest.confidential import Confidential, Kind
from vhostblk.guest.config import LAYOUT, BlkConfig
from vhostblk.guest.dma import Dma
from vhostblk.guest.driver import Driver
from vhostblk.guest.errors import GuestError
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.inflight import Inflight
from vhostblk.guest.iommu import Flush, Iommu, IommuOptions
from vhostblk.guest.layout import Region
from vhostblk.guest.machine import Machine
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.migration import Report
from vhostblk.guest.negotiate import (
    DEFAULT_FEATURES,
    DEFAULT_PROTOCOL_FEATURES,
    Agreement,
    Wanted,
)
from vhostblk.guest.power import Power
from vhostblk.guest.queue import Queue
from vhostblk.guest.rings import QueueOptions
from vhostblk.guest.session import Session
from vhostblk.guest.verbs import Verbs
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import BackendRequest


class Guest(Verbs):
    """
    A guest with one block device; make one with ``connect``.

    Not safe for use by several threads.

    Args:
        frontend: A fresh connection; owned.
        wanted: Features to agree on, and how many queues.
        queue_options: Of every queue.
        memory: The RAM, which stays the caller's; ``None`` for 64 MiB of its own.
        confidential: What makes it a confidential guest.
        iommu: The IOMMU in front of the device, or how it flushes; ``None``: there is none.
    """

    def __init__(  # noqa: PLR0913 - each is a knob that tests turn
        self,
        frontend: FrontEnd,
        wanted: Wanted | None = None,
        queue_options: QueueOptions | None = None,
        memory: GuestMemory | None = None,
        confidential: Kind | Confidential | None = None,
        *,
        iommu: Flush | IommuOptions | None = None,
    ) -> None:
        self._path: str | Path | None = None
        self.timeout = frontend.connection.timeout
        """Seconds a request may take."""
        with contextlib.ExitStack() as undo:
            undo.callback(frontend.close)
            self._machine = Machine(memory, confidential, iommu)
            undo.callback(self._machine.close)
            self.driver = Driver(self.memory, lambda: self.session.queues)
            """Requests in flight."""
            self.session = Session(
                frontend,
                self.memory,
                self._machine.wants(wanted or Wanted()),
                queue_options or QueueOptions(),
                self._machine.make_dma(),
                iommu=self.iommu,
            )
            self._power = Power(self._machine, self.session, self.driver)
            undo.pop_all()

    @classmethod
    def connect(  # noqa: PLR0913 - each is a knob that tests turn
        cls,
        path: str | Path,
        *,
        queues: int = 1,
        queue_size: int = 256,
        base: int | None = None,
        packed: bool = False,
        in_order: bool = False,
        features: int = DEFAULT_FEATURES,
        protocol_features: int = DEFAULT_PROTOCOL_FEATURES,
        memory: GuestMemory | None = None,
        confidential: Kind | Confidential | None = None,
        iommu: Flush | IommuOptions | None = None,
        timeout: float = 10.0,
        start: bool = True,
    ) -> Self:
        """
        Connect to a listening back-end and bring the device up.

        Args:
            path: The back-end's socket.
            queues: How many queues.
            queue_size: Descriptors of each.
            base: Where the rings begin (see ``QueueOptions``).
            packed: Have packed rings, or fail.
            in_order: Have requests used in the order in which they were made, or fail.
            features: Virtio features to acknowledge of those offered.
            protocol_features: Features to agree on of those offered.
            memory: The RAM, which stays the caller's; ``None`` for 64 MiB of its own.
            confidential: ``sev``, ``snp``, ``tdx``, ``bounced``, or one made by hand.
            iommu: ``page``, ``aligned`` or ``global``: the device is behind an IOMMU that flushes
                so; or one made by hand.
            timeout: Seconds a message or a request may take.
            start: Start the queues; else call ``start`` later.

        Returns:
            The guest; use it in a ``with`` statement, or ``close`` it.

        Raises:
            GuestError: The back-end is not there, or does not do what was asked.
        """
        asked = vr.F_RING_PACKED * packed | vr.F_IN_ORDER * in_order
        guest = cls(
            FrontEnd.connect(path, timeout=timeout),
            Wanted(
                queues=queues,
                features=features | asked,
                required=asked,
                protocol_features=protocol_features,
            ),
            QueueOptions(size=queue_size, base=base),
            memory,
            confidential,
            iommu=iommu,
        )
        guest._path = path
        if start:
            try:
                guest.start()
            except BaseException:
                guest.close()
                raise
        return guest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up and give everything back, as a killed QEMU would; again is harmless."""
        self.session.close()
        self.driver.abandon()
        self.dma.close()
        self._machine.close()

    @property
    def memory(self) -> GuestMemory:
        """Return the RAM."""
        return self._machine.memory

    @property
    def dma(self) -> Dma:
        """Return how the device is shown memory."""
        return self.session.dma

    @property
    def iommu(self) -> Iommu | None:
        """Return the IOMMU in front of the device, if there is one."""
        return self._machine.iommu

    @property
    def frontend(self) -> FrontEnd:
        """Return the connection, for messages of your own."""
        return self.session.frontend

    @property
    def channel(self) -> BackendChannel:
        """Return the back-end's own channel."""
        return self.session.channel

    @property
    def inflight(self) -> Inflight | None:
        """Return the region in which the back-end notes what is in flight, if there is one."""
        return self.session.inflight.region

    def keep_inflight(self, region: Inflight) -> None:
        """Have the next start hand *region* over, which another back-end made; owned."""
        self.session.inflight.keep(region)

    @property
    def queues(self) -> list[Queue]:
        """Return the virtqueues, for chains of your own."""
        return self.session.queues

    @property
    def agreement(self) -> Agreement:
        """Return what the back-end offers and what was agreed on."""
        return self.session.agreement

    @property
    def features(self) -> int:
        """Return the virtio features the driver acknowledges."""
        return self.session.features

    @property
    def capacity(self) -> int:
        """
        Return the size of the disk in sectors, when connected or changed by ``wait_config_change``.

        Raises:
            GuestError: CONFIG was not agreed on.
        """
        if self.session.capacity is None:
            raise GuestError("the capacity is not known without CONFIG")
        return self.session.capacity

    def start(self, queues: Sequence[int] | None = None) -> None:
        """Start the device on *queues* (``None``: all); see ``Session.start``."""
        self.session.start(queues)

    def stop(self) -> dict[int, int]:
        """Stop the device and return the bases; see ``Session.stop``."""
        return self.session.stop()

    def reconnect(self, path: str | Path | None = None, *, timeout: float | None = None) -> None:
        """
        Wait for a back-end that died to come back; ``wait`` for what is in flight as before.

        Args:
            path: Where it listens; ``None``: where it did.
            timeout: Seconds; ``None`` for the guest's.

        Raises:
            GuestError: It did not come back in time, or as another one, or refused.
        """
        where = path or self._path
        if where is None:
            raise GuestError("there is no path to connect to again")
        self._power.reconnect(where, self.timeout if timeout is None else timeout)
        self._path = where

    def reboot(
        self, *, features: int | None = None, queue_options: QueueOptions | None = None
    ) -> None:
        """
        Start anew on empty rings, forgetting requests in flight.

        Args:
            features: What the next driver acknowledges of what is offered; ``None``: the same.
            queue_options: Of the new rings; ``None``: as before.

        Raises:
            GuestError: The back-end refused or did not answer.
        """
        self._power.reboot(features, queue_options)

    def firmware_phase(self) -> contextlib.AbstractContextManager[None]:
        """
        Run the ``with`` block as the firmware: one queue, plain rings, islands of shared pages.

        The machine is reset before, and the operating system starts anew after it.  An IOMMU lets
        all addresses through as they are meanwhile.
        """
        return self._power.firmware_phase()

    def reset_queue(self, queue: int, queue_options: QueueOptions | None = None) -> None:
        """Stop one queue, forget what is in flight there, and start it on a new ring."""
        self._power.reset_queue(queue, queue_options)

    def migrate_to(
        self,
        path: str | Path,
        *,
        passes: int = 3,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Report:
        """
        Migrate to another back-end, with requests in flight and the RAM that it writes.

        Args:
            path: Where it listens.
            passes: How often to copy what is marked in the dirty log while the device runs.
            meanwhile: Called before each of these passes, to use the device.

        Raises:
            UnmarkedError: The device wrote pages it did not mark.
            GuestError: A back-end refused or did not answer, or the RAM is protected.
        """
        report = self._power.migrate(path, passes, meanwhile)
        self._path = path
        return report

    def add_region(self, region: Region) -> None:
        """Plug RAM in while the device runs."""
        self.session.add_region(region)

    def remove_region(self, gpa: int) -> None:
        """Unplug the region that begins at *gpa*, in which nothing may be allocated."""
        self.session.remove_region(gpa)

    def config(self) -> BlkConfig:
        """Read the config space and unpack it."""
        return BlkConfig.parse(self.read_config(0, LAYOUT.size))

    def wait_config_change(self, timeout: float | None = None) -> BlkConfig:
        """
        Wait until the back-end says that the config space has changed, and read it anew.

        Args:
            timeout: Seconds; ``None`` for the guest's.

        Raises:
            GuestError: It does not say so in time, or says something else.
        """
        seconds = self.timeout if timeout is None else timeout
        message = self.channel.wait_for(BackendRequest.CONFIG_CHANGE_MSG, seconds)
        config = self.config()
        self.session.capacity = config.capacity
        self.channel.reply(message)
        return config

    def read_config(self, offset: int, length: int) -> bytes:
        """Read *length* bytes of the config space."""
        return self.frontend.get_config(offset, length)

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to the config space, as the driver may."""
        self.frontend.set_config(offset, data)

    def submit(
        self, request: Request, *, queue: int = 0, framing: Framing | None = None
    ) -> BlkTicket:
        """
        Put a request on a queue and kick.

        Args:
            request: Any.
            queue: Which.
            framing: How it is cut; ``None``: header, data, status, or fewer on a tiny ring.

        Returns:
            What to ``wait`` for.

        Raises:
            RingError: The queue has no room for it until something else is done.
        """
        on = self.queues[queue]
        how = self._framing(on, request) if framing is None else framing
        indirect = self.session.indirect if how.indirect is None else how.indirect
        return self.driver.submit(request, on, how, indirect=indirect, timeout=self.timeout)

    def wait(self, ticket: BlkTicket, *, timeout: float | None = None) -> Completion:
        """
        Wait for one request.

        Args:
            ticket: Of ``submit``.
            timeout: Seconds; ``None`` for the guest's.

        Returns:
            How it ended, whatever the status.

        Raises:
            DeadlineError: It is still in flight.
            BrokenQueueError: The device gave up the queue.
            DisconnectedError: The back-end is gone.
            RingError: The device broke the ring's rules.
        """
        seconds = self.timeout if timeout is None else timeout
        self.queues[ticket.ticket.queue].wait([ticket.ticket], seconds)
        return self.driver.finish(ticket)

    def run(
        self,
        request: Request,
        *,
        queue: int = 0,
        framing: Framing | None = None,
        timeout: float | None = None,
    ) -> Completion:
        """Submit a request and wait for it; see ``submit`` and ``wait``."""
        return self.wait(self.submit(request, queue=queue, framing=framing), timeout=timeout)

    def _framing(self, queue: Queue, request: Request) -> Framing:
        tiny = queue.ring.shape.size < 3 and not self.session.indirect  # noqa: PLR2004 - header, data, status
        longest = queue.dma.max_mapping
        if tiny or longest is None:
            return Framing.compact() if tiny else Framing()
        return Framing.pieces(longest, request)
