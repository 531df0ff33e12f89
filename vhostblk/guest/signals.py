"""
The eventfds of a queue: one to kick the device with, two by which it calls.

They belong to a connection: who comes after it, the same back-end or another one, gets new ones.
"""

import contextlib
import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Signals:
    """
    The eventfds of one queue; make them with ``make``.

    Args:
        kick: Driver to device.
        call: Device to driver.
        err: Device to driver: the queue is broken.
    """

    kick: int
    call: int
    err: int

    @classmethod
    def make(cls, *, nonblocking_kick: bool = True) -> "Signals":
        """Make them; the kick one non-blocking as QEMU does, or blocking as others may."""
        nonblocking = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        return cls(
            kick=os.eventfd(0, nonblocking if nonblocking_kick else os.EFD_CLOEXEC),
            call=os.eventfd(0, nonblocking),
            err=os.eventfd(0, nonblocking),
        )

    def close(self) -> None:
        """Close them."""
        for fd in (self.kick, self.call, self.err):
            os.close(fd)

    def take_calls(self) -> int:
        """Return how many calls are pending (0 if none), and clear them."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0

    def forget_errors(self) -> None:
        """Clear what the device signalled as broken."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.err)
