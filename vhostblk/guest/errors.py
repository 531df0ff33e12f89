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
