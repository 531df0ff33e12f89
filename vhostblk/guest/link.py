"""
A connection to a back-end from the device's side: what was agreed on it, and what it was told.

A device may outlive it: with the same back-end come back, or with another one after a migration.
"""

from collections.abc import Sequence

from vhostblk.guest.channel import BackendChannel
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.layout import Region
from vhostblk.guest.mapping import Mapping
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.negotiate import Wanted, negotiate
from vhostblk.guest.signals import Signals
from vhostblk.spec.vhost_user import DeviceStatus, ProtocolFeature


class Link:
    """
    A connection on which was negotiated, and calls were agreed on.

    Args:
        frontend: A fresh connection; owned.
        wanted: Features to agree on, and how many queues.
        nonblocking_kick: Make the kick eventfds non-blocking.

    Raises:
        GuestError: The back-end does not agree; nothing is left open.
    """

    def __init__(
        self, frontend: FrontEnd, wanted: Wanted, *, nonblocking_kick: bool = True
    ) -> None:
        self.frontend = frontend
        self.channel = BackendChannel(frontend.connection.timeout)
        self.signals: list[Signals] = []
        """Of each queue."""
        self._known: list[Region] = []
        try:
            self.agreement = negotiate(frontend, wanted, self.channel)
            for index in range(wanted.queues):
                signals = Signals.make(nonblocking_kick=nonblocking_kick)
                self.signals.append(signals)
                # Long before SET_FEATURES: QEMU does so as soon as it is connected.
                frontend.set_vring_call(index, signals.call)
                frontend.set_vring_err(index, signals.err)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up; again is harmless."""
        self.frontend.close()
        self.channel.close()
        while self.signals:
            self.signals.pop().close()

    def agreed(self, feature: ProtocolFeature) -> bool:
        """Tell whether a protocol feature is in force."""
        return feature in self.agreement.protocol_features

    def set_status(self, bits: DeviceStatus) -> None:
        """Add *bits* to the device status, as QEMU does: by reading it first."""
        if self.agreed(ProtocolFeature.STATUS):
            status = self.frontend.get_status()
            if bits & ~status:
                self.frontend.set_status(status | bits)

    def clear_status(self) -> None:
        """Reset the device by its status."""
        if self.agreed(ProtocolFeature.STATUS):
            self.frontend.set_status(0)

    def send_memory(self, memory: GuestMemory) -> None:
        """Tell of regions the back-end does not know, by slots or by a whole table."""
        regions = _regions(memory.mappings)
        if regions == self._known:
            return
        if self.agreed(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            for mapping in memory.mappings:
                if mapping.region not in self._known:
                    self.frontend.add_mem_reg(mapping)
        else:
            self.frontend.set_mem_table(memory.mappings)
        self._known = regions

    def take_memory(self, memory: GuestMemory, gone: Mapping) -> None:
        """Tell that *gone*, one region of *memory*, is about to go."""
        rest = [m for m in memory.mappings if m is not gone]
        if self.agreed(ProtocolFeature.CONFIGURE_MEM_SLOTS):
            self.frontend.rem_mem_reg(gone)
        else:
            self.frontend.set_mem_table(rest)
        self._known = _regions(rest)


def _regions(mappings: Sequence[Mapping]) -> list[Region]:
    return [mapping.region for mapping in mappings]
