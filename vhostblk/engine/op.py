"""What a request asks of a disk."""

from enum import IntEnum


class Op(IntEnum):
    """What a job asks for; the numbers are those of ``enum vhb_op``."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    WRITE_ZEROES = 4
    CANCEL = 5
