"""
Layers that the core runs: what each kind is made of, and layers of them in front of a disk.

A kind is known by the dataclass that its layer returns from `StageLayer.stage`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vhostblk.disk.delay import DelayStage
from vhostblk.disk.error import ErrorStage
from vhostblk.disk.limit import LimitStage
from vhostblk.disk.ops import Op
from vhostblk.disk.partition import PartitionStage
from vhostblk.disk.record import RecordStage
from vhostblk.disk.stage import RecordState, Stage, StageLayer
from vhostblk.disk.stats import StatsStage
from vhostblk.disk.stats import counters as stats_counters
from vhostblk.engine.native.core import check, ffi, lib, make
from vhostblk.errors import VhostBlkError

TAKE = 1 << 16
"""Bytes of records that are taken at once."""
MAX_LAYERS = 8
"""Of the core, directly in front of each other; ``VHB_MAX_LAYERS``."""


@dataclass(frozen=True, slots=True)
class Kind:
    """
    A kind of stage: ``vhb_stage_NAME_new`` and ``vhb_stage_NAME_set`` of ``struct vhb_NAME``.

    Args:
        name: As in C.
        counters: Names of what it counts, in C's order.
        value: From the dataclass to what initializes the struct; None: field by field, by name.
    """

    name: str
    counters: Sequence[str] = ()
    value: Callable[[Any], Mapping[str, object]] | None = None

    def settings(self, stage: Any) -> Any:
        """Return a ``struct vhb_NAME *`` that says what *stage* does."""
        if self.value is not None:
            values = self.value(stage)
        else:
            values = {field.name: getattr(stage, field.name) for field in fields(stage)}
        return ffi.new(f"struct vhb_{self.name} *", values)


def _delay(stage: DelayStage) -> Mapping[str, object]:
    spreads = {False: lib.VHB_DELAY_EVEN, True: lib.VHB_DELAY_EXPONENTIAL}
    times = [
        {"least_ns": one.least_ns, "more_ns": one.more_ns, "spread": spreads[one.exponential]}
        for one in stage.waits
    ]
    return {"times": times, "seed": stage.seed}


def _error(stage: ErrorStage) -> Mapping[str, object]:
    return {
        "file": os.fsencode(stage.file),
        "offset": stage.offset,
        "end": stage.end,
        "rate": round(stage.rate * lib.VHB_ERROR_ALWAYS),
        "seed": stage.seed,
        "after": stage.after,
        "count": stage.count,
        "ops": sum(1 << bit for bit, op in enumerate(Op) if op in stage.ops),
        "error": stage.errno,
        "on": stage.on,
    }


KINDS: Mapping[type, Kind] = {
    DelayStage: Kind("delay", ("delayed",), _delay),
    ErrorStage: Kind("error", ("matched", "injected"), _error),
    LimitStage: Kind("limit", ("waited", "waited_ns")),
    PartitionStage: Kind("partition"),
    RecordStage: Kind("record"),
    StatsStage: Kind("stats", stats_counters()),
}


class NativeStage:
    """
    `Bound`: a stage of the core; any number of layers may share it.

    Args:
        stage: One of a kind that is known.
    """

    def __init__(self, stage: Stage) -> None:
        self._type = type(stage)
        if self._type not in KINDS:
            raise VhostBlkError(f"the core has no stage that is a {self._type.__name__}")
        self._kind = KINDS[self._type]
        new = getattr(lib, f"vhb_stage_{self._kind.name}_new")
        made = make("stage", new, self._kind.settings(stage))
        self.handle = ffi.gc(made, lib.vhb_stage_free)

    def set(self, stage: Stage) -> None:
        """Have it set otherwise from the next request on."""
        if type(stage) is not self._type:
            raise TypeError(f"{stage!r} is no {self._type.__name__}")
        setter = getattr(lib, f"vhb_stage_{self._kind.name}_set")
        check(setter(self.handle, self._kind.settings(stage)), self._kind.name)

    def counters(self) -> Mapping[str, int]:
        """Return what it has counted, over all queues."""
        names = self._kind.counters
        out = ffi.new("uint64_t[]", len(names))
        check(lib.vhb_stage_counters(self.handle, out, len(names)), self._kind.name)
        return dict(zip(names, out, strict=True))


class NativeRecorder(NativeStage):
    """`BoundRecorder`: a stage that writes requests down."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._buffer = ffi.new("uint8_t[]", TAKE)

    @property
    def wake_fd(self) -> int:
        """Readable when half of the room was filled."""
        return check(lib.vhb_stage_record_wake_fd(self.handle), "record")

    def flush(self) -> None:
        """Write what waits to the file."""
        check(lib.vhb_stage_record_flush(self.handle), "record")

    def take(self) -> bytes:
        """Return records that wait, where there is no file."""
        n = check(lib.vhb_stage_record_take(self.handle, self._buffer, TAKE), "record")
        return bytes(ffi.buffer(self._buffer, n))

    def state(self) -> RecordState:
        """Return how far it has come."""
        now = ffi.new("struct vhb_record_state *")
        check(lib.vhb_stage_record_state(self.handle, now), "record")
        return RecordState(
            words=now.words,
            taken=now.taken,
            bytes=now.bytes,
            lost=now.lost,
            dropped=now.dropped,
            error=now.error,
        )


def bind(layers: Sequence[StageLayer]) -> tuple[NativeStage, ...]:
    """
    Make the stages of *layers*, which are open, and have them reach the core.

    One that is bound already keeps its stage, with what that has counted.

    Raises:
        VhostBlkError: There are too many.
    """
    if len(layers) > MAX_LAYERS:
        raise VhostBlkError(
            f"{' | '.join(layer.name for layer in layers)}: {len(layers)} layers of the core "
            f"directly in front of each other, and {MAX_LAYERS} can be"
        )
    return tuple(_bound(layer) for layer in layers)


def _bound(layer: StageLayer) -> NativeStage:
    if isinstance(layer.bound, NativeStage):
        layer.bound.set(layer.stage())
        return layer.bound
    settings = layer.stage()
    recorder = isinstance(settings, RecordStage)
    stage = NativeRecorder(settings) if recorder else NativeStage(settings)
    layer.bind(stage)
    return stage


class Layers:
    """
    One layer of each stage in front of a disk of the core, which stays the caller's.

    Args:
        stages: The outermost first.
        disk: What is behind them.
    """

    def __init__(self, stages: Sequence[NativeStage], disk: Any) -> None:
        self._stages = stages  # which must outlive the layers
        self._made: list[Any] = []
        for stage in reversed(stages):
            disk = make("disk", lib.vhb_layer_new, disk, stage.handle)
            self._made.append(disk)
        self.disk = disk

    def free(self) -> None:
        """Free the layers; no queue uses them any more."""
        while self._made:
            check(lib.vhb_disk_free(self._made.pop()), "layer")
