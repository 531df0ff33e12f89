"""What a chain needs that only the front-end can say, asked for as its descriptors are read."""

from vhostblk.blk.request import ADDRESS_MASK, Buffer
from vhostblk.engine.reference.memory import GuestMemory
from vhostblk.memory.space import Denied

MAX_PIECES = 2048
"""Runs of memory of one request; more are nobody's request, and more than readv takes twice."""


class Needs:
    """
    The needs of one chain; once it is seen to be no request, its data are needed no more.

    Args:
        memory: What its addresses mean.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._room = MAX_PIECES
        self._writable = False
        self._lost = False

    def see(self, part: Buffer) -> None:
        """
        Look at its next descriptor.

        Raises:
            Missing: A byte of it must be asked for.
        """
        self._writable |= part.writable and part.length > 0
        misplaced = self._writable and not part.writable
        wraps = part.address + part.length > ADDRESS_MASK
        self._lost |= misplaced or wraps or part.length == 0
        if self._lost:
            return
        try:
            self._room -= len(self._memory.locate(part))
        except Denied:
            self._lost = True
        self._lost |= self._room < 0
