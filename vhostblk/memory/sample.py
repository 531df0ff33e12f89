"""
What the data plane records of a request, for others to judge.

Numbers, not bytes: where a descriptor points, how far, and what it is there for.
"""

from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """A descriptor's direction, or an indirect table; the numbers are the C header's."""

    READABLE = 0
    WRITABLE = 1
    TABLE = 2


@dataclass(frozen=True, slots=True)
class Sample:
    """
    One descriptor of a sampled chain.

    Args:
        chain: Number of the chain since sampling began, modulo 65536.
        iova: First byte, as the driver wrote it.
        length: Bytes.
        role: What it is.
        outside: The device was not to go there, or was told to note that it does.
    """

    chain: int
    iova: int
    length: int
    role: Role
    outside: bool
