"""
Layers that the C core runs: what each is set to, in the core's units.

Such a layer is a `StageLayer`: it says what the core is to do (`StageLayer.stage`) and is told how
to reach it (`StageLayer.bind`); no request of its own passes through Python.  Any number of queues
may share one stage.
"""

# ruff: noqa: ARG002 - the methods that are not called name their parameters
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from vhostblk.disk.call import Pending
from vhostblk.disk.layer import Layer
from vhostblk.errors import VhostBlkError


class Stage(Protocol):
    """A frozen dataclass, one for each kind of layer of the core; beside its layer."""


class Bound(Protocol):
    """A stage that the core runs.  Any thread."""

    def set(self, stage: Stage) -> None:
        """Have it set otherwise from the next request on; a stage of the same kind."""
        ...

    def counters(self) -> Mapping[str, int]:
        """Return what it has counted, over all queues."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordState:
    """
    How far a stage that records has come; see ``struct vhb_record_state``.

    Args:
        words: Recorded so far.
        taken: Of these: written, lost, or taken.
        bytes: Of blocks in the file.
        lost: Words that the file did not take.
        dropped: Records that found no room, where there is no file.
        error: The errno of the last block; 0: it was written.
    """

    words: int
    taken: int
    bytes: int
    lost: int
    dropped: int
    error: int


class BoundRecorder(Bound, Protocol):
    """A stage that writes requests down; the methods are any one thread's."""

    @property
    def wake_fd(self) -> int:
        """Readable when half of the room was filled."""
        ...

    def flush(self) -> None:
        """Write what waits to the file."""
        ...

    def take(self) -> bytes:
        """Return records that wait, where there is no file; empty: none do."""
        ...

    def state(self) -> RecordState:
        """Return how far it has come."""
        ...


class StageLayer(Layer):
    """A layer that the C core runs; see `vhostblk.disk.layer.Layer`."""

    bound: Bound | None = None
    before: Mapping[str, int] = MappingProxyType({})
    """What is to be added to what the core has counted."""

    # ---- what was counted ---------------------------------------------------------------------

    def counted(self) -> Mapping[str, int]:
        """Return what it has counted, here and before; nothing where the core does not serve it."""
        now = self.bound.counters() if self.bound is not None else {}
        return {name: n + self.before.get(name, 0) for name, n in now.items()}

    def recall(self, counted: Mapping[str, int]) -> None:
        """Add what was counted in another process."""
        self.before = {**self.before, **{k: n + self.before.get(k, 0) for k, n in counted.items()}}

    # ---- which no request of a device calls ---------------------------------------------------

    def read(self, offset: int, views: Sequence[memoryview]) -> Pending:
        """Raise: only the core can do what this layer does."""
        raise self._not_served()

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        """Raise: only the core can do what this layer does."""
        raise self._not_served()

    def discard(self, offset: int, length: int) -> Pending:
        """Raise: only the core can do what this layer does."""
        raise self._not_served()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> Pending:
        """Raise: only the core can do what this layer does."""
        raise self._not_served()

    def _not_served(self) -> VhostBlkError:
        return VhostBlkError(
            f"layer {self.name} is run by the C core, and this is no device of it: leave it out, "
            "or have only layers in front of it that are a Layer"
        )

    # ---- the core's ---------------------------------------------------------------------------

    def stage(self) -> Stage:
        """Return what the core is to do; valid once the layer is open."""
        raise NotImplementedError

    def bind(self, bound: Bound) -> None:
        """Take what reaches the core; called behind `open` and before the first request."""
        self.bound = bound


def split(disk: object) -> tuple[tuple[StageLayer, ...], object]:
    """
    Part the layers in front that the core runs from what is behind them.

    Args:
        disk: Any disk.

    Returns:
        The stages that a request meets before it meets anything else, the outermost first; and
        the disk, or the layer of another kind, behind them.
    """
    stages: list[StageLayer] = []
    while isinstance(disk, StageLayer):
        stages.append(disk)
        disk = disk.below
    return tuple(stages), disk
