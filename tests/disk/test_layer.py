"""A layer that changes nothing: all of the disk below, and no more."""

import asyncio

import pytest

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.call import Calls, methods, run
from vhostblk.disk.layer import Layer, layers
from vhostblk.disk.memory import Memory
from vhostblk.disk.null import Null
from vhostblk.errors import VhostBlkError


class ReadOnly(Disk):
    """The least there is."""

    def info(self) -> DiskInfo:
        """Return a disk of a sector."""
        return DiskInfo(size=512)

    def read(self, offset: int, views: object) -> None:
        """Give what is there."""


def opened(disk: object) -> Calls:
    """Open a disk and return its calls."""
    calls = Calls(disk)
    asyncio.run(run(calls.open))
    return calls


def test_a_layer_offers_what_the_disk_below_can() -> None:
    """The abilities of a layer are those of its disk, though it defines every method."""
    for disk in (Memory(1 << 20), Null(1 << 20), ReadOnly()):
        below, layered = opened(disk), opened(Layer(disk))
        assert layered.abilities().write == below.abilities().write
        assert layered.abilities().discard == below.abilities().discard
        assert layered.abilities().write_zeroes == below.abilities().write_zeroes
        assert layered.info().volatile == below.info().volatile
        assert layered.info().size == below.info().size


def test_a_layer_moves_the_bytes_of_the_disk_below() -> None:
    """What is written through two layers is in the disk, and is read back through them."""
    disk = Memory(1 << 20)
    calls = opened(Layer(Layer(disk)))
    data = bytes(range(256)) * 4
    assert calls.write(4096, [memoryview(data)]) is None
    back = bytearray(1024)
    assert calls.read(4096, [memoryview(back)]) is None
    assert back == data
    disk.read(4096, [memoryview(back)])
    assert back == data


def test_a_layer_has_beyond_the_contract_what_its_disk_has() -> None:
    """A Null disk can be shared with another process, so a layer in front can; a Memory cannot."""
    assert hasattr(Layer(Null(512)), "share")
    assert not hasattr(Layer(Memory(512)), "share")
    assert not hasattr(Layer(Null(512)), "native")


def test_layers_names_them_from_the_outside() -> None:
    """The disk itself is no layer."""
    inner = Layer(Null(512))
    outer = Layer(inner)
    assert list(layers(outer)) == [outer, inner]
    assert list(layers(Null(512))) == []


def test_a_layer_refuses_what_it_cannot_change() -> None:
    """The error names the layer and the option."""
    with pytest.raises(VhostBlkError, match="layer: 'speed' cannot be changed"):
        Layer(Null(512)).change({"speed": "1"})


def test_a_layer_in_front_of_no_disk_is_refused() -> None:
    """It is said at once, not at the first request."""
    with pytest.raises(VhostBlkError, match="is not a disk"):
        Layer(object())


def test_methods_of_a_layer_are_all_its_own() -> None:
    """Its info narrows them, not their absence."""
    assert methods(Layer(ReadOnly())).write
