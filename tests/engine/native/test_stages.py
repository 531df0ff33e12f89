"""Stages of the core from Python: made once for a layer, set at any time, known by their kind."""

from dataclasses import dataclass

import pytest

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

from vhostblk.disk.memory import Memory
from vhostblk.disk.offset import Offset
from vhostblk.disk.partition import PartitionStage
from vhostblk.disk.stage import split
from vhostblk.engine.native.core import lib
from vhostblk.engine.native.disks import Bottom
from vhostblk.engine.native.stages import KINDS, MAX_LAYERS, Layers, NativeStage, bind
from vhostblk.errors import VhostBlkError

MIB = 1 << 20


def part(below: object) -> Offset:
    return Offset(below, start=0, size=MIB)


def test_a_layer_keeps_its_stage() -> None:
    """What is bound again, for a disk that has moved, goes on with what it has counted."""
    layer = part(Memory(MIB))
    (first,) = bind([layer])
    assert layer.bound is first
    assert bind([layer]) == (first,)


def test_a_stage_is_set_by_its_own_kind_only() -> None:
    """Another dataclass, or values that none can have, leave it as it is."""

    @dataclass(frozen=True)
    class Other:
        offset: int = 0
        size: int = MIB

    with pytest.raises(VhostBlkError, match="the core has no stage that is a Other"):
        NativeStage(Other())
    stage = NativeStage(PartitionStage(offset=0, size=MIB))
    stage.set(PartitionStage(offset=512, size=512))
    with pytest.raises(TypeError, match="is no PartitionStage"):
        stage.set(Other())
    with pytest.raises(VhostBlkError, match="partition: Invalid argument"):
        stage.set(PartitionStage(offset=1 << 63, size=512))
    assert stage.counters() == {}


def test_layers_stand_in_the_order_of_their_stages() -> None:
    """The outermost is what a queue sees; all are freed, and what is behind them only then."""
    disk = Memory(MIB)
    disk.open()
    stages, below = split(part(part(disk)))
    assert below is disk
    bottom = Bottom.of(disk)
    assert bottom is not None
    layers = Layers(bind(stages), bottom.disk)
    assert layers.disk != bottom.disk
    assert lib.vhb_disk_free(bottom.disk) < 0
    layers.free()
    bottom.free()
    disk.close()


def test_as_many_as_the_core_has_room_for() -> None:
    """One more is refused in words, before anything is made."""
    layers = [part(Memory(MIB)) for _ in range(MAX_LAYERS)]
    assert len(bind(layers)) == MAX_LAYERS
    with pytest.raises(VhostBlkError, match=r"9 layers of the core .* and 8 can be"):
        bind([*layers, part(Memory(MIB))])


def test_every_kind_has_its_functions() -> None:
    """The table names what the core has."""
    for kind in KINDS.values():
        assert hasattr(lib, f"vhb_stage_{kind.name}_new")
