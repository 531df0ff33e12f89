"""
What can go wrong on the guest's side of the socket.

One base, so that a test can say "the fake guest gave up" in one except; every text names what was
waited for or what was found, because it is all the reader of a CI log will get.
"""


class GuestError(Exception):
    """The base of everything the fake guest raises."""


class DeadlineError(GuestError):
    """Something did not happen in time."""


class DisconnectedError(GuestError):
    """The back-end closed the connection, or it never was."""


class NackError(GuestError):
    """
    The back-end answered a message with a non-zero acknowledgement.

    Args:
        request: Name of the message.
        code: The u64 of the reply, never 0.
    """

    def __init__(self, request: str, code: int) -> None:
        super().__init__(f"the back-end refused {request}: its acknowledgement is {code:#x}")
        self.request = request
        self.code = code


class RingError(GuestError):
    """The device broke a rule of the ring, or a chain cannot be put on it."""


class BrokenQueueError(GuestError):
    """The back-end signalled the err eventfd: it gave the queue up."""


class StatusError(GuestError):
    """
    A block request ended with another status than OK.

    Args:
        what: The request, in words.
        status: The status byte; ``UNWRITTEN_STATUS`` of ``blk`` if the device wrote none.
    """

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"{what} ended with status {status:#04x}")
        self.status = status


class MismatchError(GuestError):
    """
    A load with ``verify`` read something else than it had written last.

    Args:
        offset: Byte on the disk, the first that is wrong.
        found: The number of the sector, and the tag and generation, that are there.
        wanted: Those that must be.
    """

    def __init__(self, offset: int, *, found: tuple[int, int], wanted: tuple[int, int]) -> None:
        (sector, stamp), (right, written) = found, wanted
        generation = written & _GENERATION
        if stamp >> 32 != written >> 32:
            what = "nothing that this run wrote"
        elif sector != right:
            what = f"sector {sector}"
        elif stamp != written:
            what = f"generation {stamp & _GENERATION}"
        else:
            what = "damaged data"
        super().__init__(
            f"wrong data at byte {offset} of the disk: "
            f"generation {generation} of sector {right} was written last, and {what} was read"
        )
        self.offset = offset


_GENERATION = (1 << 32) - 1
