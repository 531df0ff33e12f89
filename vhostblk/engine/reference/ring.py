"""
What a ring format is: five verbs (pop, push, should_call, arm, quiet), and where it stands.

`split` and `packed` are the two.  What a chain is, and how one is given back, is the same for both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vhostblk.blk.request import Buffer
from vhostblk.engine.api import Fault
from vhostblk.engine.reason import Reason
from vhostblk.engine.reference.memory import GuestMemory, Part
from vhostblk.engine.reference.record import Trace
from vhostblk.spec.virtio_ring import DESC_F_WRITE


class Broken(Exception):  # noqa: N818 - the ring's state, not an error of ours
    """
    The ring is not a ring.

    Args:
        reason: In which way.
        index: Where it was met: avail index, descriptor or position in a packed ring.
        value: The offending value.
    """

    def __init__(self, reason: Reason, index: int, value: int) -> None:
        super().__init__(reason.text)
        self.fault = Fault(reason.text, index, value)


@dataclass(frozen=True, slots=True)
class Layout:
    """
    Where a ring lives, and by which rules.

    Args:
        size: Descriptors.
        desc: The descriptor table, or the descriptor ring.
        avail: The avail ring, or the driver's event suppression.
        used: The used ring, or the device's event suppression.
        indirect: INDIRECT_DESC was acked.
        in_order: IN_ORDER was acked.
    """

    size: int
    desc: Part
    avail: Part
    used: Part
    indirect: bool
    in_order: bool


@dataclass(frozen=True, slots=True)
class Descriptor:
    """
    One descriptor, as it was when it was read.

    Args:
        address: Of what it names.
        length: Bytes of that.
        flags: As the driver set them.
        link: Split: the next one's index.  Packed: the buffer id.
    """

    address: int
    length: int
    flags: int
    link: int

    @property
    def buffer(self) -> Buffer:
        """Return the buffer it names."""
        return Buffer(self.address, self.length, bool(self.flags & DESC_F_WRITE))


@dataclass(frozen=True, slots=True)
class Chain:
    """
    What the driver made available at once.

    Args:
        name: Towards the driver: its head, or its buffer id.
        at: Where it begins, for who tells what is wrong with it.
        buffers: In order, indirect ones resolved.
        descriptors: Those of the ring, as they were read; packed only.
        again: It was taken before by a back-end that died.
    """

    name: int
    at: int
    buffers: tuple[Buffer, ...]
    descriptors: tuple[Descriptor, ...] = ()
    again: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """
    A chain that is given back.

    Args:
        chain: As it was popped.
        written: Bytes the device wrote into it.
    """

    chain: Chain
    written: int

    @property
    def whole(self) -> bool:
        """Return whether all of it that may be written was."""
        return self.written == sum(part.length for part in self.chain.buffers if part.writable)


def batches(done: Sequence[Done], *, in_order: bool) -> Iterator[Sequence[Done]]:
    """
    Cut what is given back into batches, each told by the used element of its last.

    A driver takes the others for used completely, so one that is not ends its batch.

    Args:
        done: In the order the driver is told.
        in_order: Which is the order it made them available in, as it knows.

    Spec: virtio 1.3, 2.7.9, 2.8.9.
    """
    start = 0
    for end, one in enumerate(done, 1):
        if not (in_order and one.whole) or end == len(done):
            yield done[start:end]
            start = end


class Region(Protocol):
    """Where is noted what is taken; see `inflight`."""

    def forget(self) -> None:
        """Have it made anew when a ring is loaded."""
        ...


class Ring(Protocol):
    """A virtqueue in guest memory."""

    layout: Layout
    """Replaced where the ring moves to another address of ours."""

    @property
    def region(self) -> Region | None:
        """Where what is taken is noted."""
        ...

    def load(self) -> None:
        """
        Find out where the ring stands; the worker's, once, before any verb.

        Raises:
            Broken: What a back-end before us left there cannot be.
        """
        ...

    def base(self) -> int:
        """Return where the ring stands, as the front-end says it."""
        ...

    def at(self) -> int:
        """Return where the next chain begins, for who tells what is wrong."""
        ...

    def places(self) -> tuple[int, int]:
        """Return the next to take and to give back, as `Counters` has them."""
        ...

    def pop(self, memory: GuestMemory, trace: Trace) -> Chain | None:
        """
        Look at the next chain; it is not taken before `take`.

        Args:
            memory: Where indirect tables and buffers are.
            trace: Where what it names is noted.

        Returns:
            The chain; None where there is none.

        Raises:
            Broken: There is one, and it is none.
            Missing: A part of it must be asked for.
        """
        ...

    def take(self, chain: Chain) -> None:
        """Take the chain that was popped last."""
        ...

    def must_replay(self) -> bool:
        """Say whether chains that a predecessor took are still to be popped."""
        ...

    def forget_region(self) -> None:
        """Note nothing more of what is taken."""
        ...

    def push(self, done: Sequence[Done]) -> None:
        """Give chains back, with one publication."""
        ...

    def should_call(self) -> bool:
        """Say whether the driver wants to know."""
        ...

    def arm(self) -> bool:
        """Ask for kicks again; return whether there is a chain to take."""
        ...

    def quiet(self) -> None:
        """Tell the driver that kicks are not needed now."""
        ...
