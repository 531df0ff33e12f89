"""Resets of a guest: reboot, firmware before it, one queue alone; and moves to other back-ends."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vhostblk.guest.deadline import Deadline
from vhostblk.guest.dma import Dma
from vhostblk.guest.driver import Driver
from vhostblk.guest.errors import DisconnectedError
from vhostblk.guest.firmware import FIRMWARE_FEATURES
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.machine import Machine
from vhostblk.guest.migration import Migration, Report
from vhostblk.guest.rings import QueueOptions
from vhostblk.guest.session import Session

RETRY_SECONDS = 0.01
"""How often is looked whether a back-end is there again; QEMU has ``reconnect-ms`` for it."""


class Power:
    """
    Whoever resets a guest.

    Args:
        machine: The guest's.
        session: Its device.
        driver: Its driver.
    """

    def __init__(self, machine: Machine, session: Session, driver: Driver) -> None:
        self._machine = machine
        self._session = session
        self._driver = driver

    def reboot(self, features: int | None, queue_options: QueueOptions | None) -> None:
        """Start anew on empty rings; see ``Guest.reboot``."""
        self._hand_over(features, queue_options, self._machine.make_dma())

    @contextlib.contextmanager
    def firmware_phase(self) -> Iterator[None]:
        """Run the ``with`` block as the firmware; see ``Guest.firmware_phase``."""
        features, options = self._session.features, self._session.queues[0].options
        split = replace(options, size=1 << options.size.bit_length() - 1, base=None)
        firmware = self._machine.make_firmware_dma()
        self._hand_over(FIRMWARE_FEATURES, split, firmware, [0], firmware=True)
        try:
            yield
        finally:
            self._hand_over(features, options, self._machine.make_dma())

    def reset_queue(self, index: int, options: QueueOptions | None) -> None:
        """Stop one queue and start it on a new ring; see ``Guest.reset_queue``."""
        self._session.stop_queue(index)
        self._driver.abandon(index)
        self._session.restart_queue(index, options)

    def reconnect(self, path: str | Path, timeout: float) -> None:
        """Wait for a back-end that died to come back; see ``Guest.reconnect``."""
        deadline = Deadline.after(timeout, f"the back-end to come back at {path}")
        seconds = self._session.frontend.connection.timeout
        while True:
            try:
                frontend = FrontEnd.connect(path, timeout=seconds)
                self._session.resume(self._session.open_link(frontend))
            except DisconnectedError:
                time.sleep(min(deadline.left(), RETRY_SECONDS))
            else:
                return

    def migrate(self, path: str | Path, passes: int, meanwhile: Callable[[], None]) -> Report:
        """Move to the back-end at *path*; see ``Guest.migrate_to``."""
        migration = Migration(self._session, self._machine.memory, path)
        try:
            for _ in range(passes):
                meanwhile()
                migration.copy()
        except BaseException:
            migration.cancel()
            raise
        return migration.finish()

    def _hand_over(
        self,
        features: int | None,
        queue_options: QueueOptions | None,
        dma: Dma,
        queues: Sequence[int] | None = None,
        *,
        firmware: bool = False,
    ) -> None:
        # The new bounce pool is made while the old one is there, so it lies elsewhere.
        old, self._session.dma = self._session.dma, dma
        self._session.shut_down()
        self._driver.abandon()
        self._machine.reset(firmware=firmware)
        self._session.boot(features, queue_options, queues)
        old.close()
