"""Layers that the C core runs, in front of disks of every kind, served to the fake guest."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_kit.disks import Ram, made
from server_kit.serving import Serving, names, serving

from vhostblk.disk.offset import Offset
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, StatusError

Connect = Callable[..., Guest]
MIB = 1 << 20
X, Y = b"x" * 4096, b"y" * 4096


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core, which these layers are for."""
    with serving("native") as running:
        yield running


def part(below: object, offset: int = 4096, size: int = MIB // 2) -> Offset:
    return Offset(below, start=offset, size=size)


KINDS = ("file", "memory", "python")


@pytest.mark.parametrize("kind", KINDS)
def test_layers_in_front_of_a_disk(
    kind: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """A request meets each layer once, on any queue; the device is as large as the outermost."""
    disk = made(kind, tmp_path)
    stack = part(part(disk), size=MIB // 4)
    guest = vhost_user_guest(server.add(stack, num_queues=2), queues=2)
    assert guest.config().capacity == MIB // 4 // 512
    guest.write(0, X)
    guest.write(MIB // 4 // 512 - 8, Y, queue=1)
    assert guest.read(0, 4096, queue=1) == X
    guest.flush()
    assert guest.read(MIB // 4 // 512 - 8, 4096) == Y
    with pytest.raises(StatusError):
        guest.read(MIB // 4 // 512, 512)
    if isinstance(disk, Ram):
        assert disk.data[8192 : 8192 + 4096] == X
        assert disk.data[MIB // 4 + 4096 : MIB // 4 + 8192] == Y
        assert disk.data.count(0) == MIB - 8192
        assert "flush" in names(disk.calls)


def test_a_flush_by_the_server_reaches_the_disk(server: Serving, vhost_user_guest: Connect) -> None:
    """A guest that goes leaves a disk that has been flushed, behind layers too."""
    disk = Ram(MIB)
    guest = vhost_user_guest(server.add(part(disk)))
    guest.write(0, X)
    assert "flush" not in names(disk.calls)
    guest.stop()
    server.stop()
    assert names(disk.calls)[-2:] == ["flush", "close"]


def test_nine_layers_of_the_core_are_too_many(server: Serving) -> None:
    """One line says how many can be; the disk is closed again."""
    disk = Ram(MIB)
    stack: object = disk
    for _ in range(9):
        stack = part(stack, offset=0, size=MIB)
    with pytest.raises(VhostBlkError, match=r"9 layers of the core directly .*, and 8 can be"):
        server.add(stack)
    assert names(disk.calls) == ["open", "close"]


def test_the_reference_engine_says_what_a_layer_needs() -> None:
    """A layer that only the core can run is refused in one line, before the disk is opened."""
    disk = Ram(MIB)
    with serving("reference") as server, pytest.raises(VhostBlkError) as caught:
        server.add(part(disk))
    assert str(caught.value) == (
        "layer offset needs the native engine (the compiled core): serve with that, "
        "or leave out the layer"
    )
    assert disk.calls == []
