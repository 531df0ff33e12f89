"""What a chain needs, found as its descriptors are read: what to ask for, what is outside."""

from vhostblk.blk.request import ADDRESS_MASK, Buffer
from vhostblk.engine.reference.memory import GuestMemory
from vhostblk.engine.reference.record import Trace
from vhostblk.memory.space import Access, Denied

MAX_PIECES = 2048
"""Runs of memory of one request; more are nobody's request, and more than readv takes twice."""


class Needs:
    """
    The needs of one chain; once it is seen to be no request, its data are needed no more.

    Args:
        memory: What its addresses mean.
        trace: Where it is noted.
    """

    def __init__(self, memory: GuestMemory, trace: Trace) -> None:
        self._memory = memory
        self._trace = trace
        self._room = MAX_PIECES
        self._writable = False
        self._lost = False

    def see(self, part: Buffer) -> None:
        """
        Look at its next descriptor.

        Raises:
            Missing: A byte of it must be asked for.
            Denied: To go there is fatal.
        """
        self._writable |= part.writable and part.length > 0
        misplaced = self._writable and not part.writable
        wraps = part.address + part.length > ADDRESS_MASK
        self._lost |= misplaced or wraps or part.length == 0
        if self._lost:
            self._trace.see(part, outside=False)
            return
        try:
            found = self._memory.find(part)
        except Denied as denied:
            self._lost = True
            self._trace.see(part, outside=True)
            if denied.fatal:
                raise
            return
        self._trace.see(part, outside=any(Access.NOTED in one.access for one in found))
        self._room -= len(found)
        self._lost |= self._room < 0
