"""
The errors of this package.

One base; two kinds that mean something to the protocol.  Anything else that is raised while a
message is handled is our own bug and closes the session loudly.
"""


class VhostBlkError(Exception):
    """Something a person can act on; its text is one line that says what to do."""


class ProtocolError(VhostBlkError):
    """The front-end erred; its connection cannot go on."""


class Refused(VhostBlkError):  # noqa: N818 - it is an answer, not an error of ours
    """
    We cannot do what a well-formed message asks.

    Args:
        errno: What a REPLY_ACK carries; never 0.
        reason: One line for the log.
    """

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno
