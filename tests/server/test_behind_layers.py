"""A disk behind layers: it is resized, replaced, loaded again, locked and marked as by itself."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from server_kit.disks import Ram
from server_kit.serving import Serving, until

from vhostblk.disk.file import File, Locking
from vhostblk.disk.grammar import parse
from vhostblk.disk.layer import Layer
from vhostblk.disk.make import make
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest

if TYPE_CHECKING:
    from vhostblk.server.layers import LayerRow

Connect = Callable[..., Guest]
MIB = 1 << 20
X, Y = b"x" * 4096, b"y" * 4096


# ---- size, disk, code ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_disk_behind_layers_is_resized(
    kind: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Larger and smaller, while a guest uses it; what it holds stays."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    disks = {"memory": "memory:1M", "file": f"file:{image}"}
    guest = vhost_user_guest(server.add_written(f"zeroes|pause|{disks[kind]}"))
    guest.write(0, X)
    for size in (2 * MIB, MIB // 2):
        assert server.run(server.operations.resize("s1", size)) == {"size": size}
        assert guest.config().capacity == size // 512
        assert guest.read(0, 4096) == X
        guest.write(size // 512 - 8, Y)
        assert guest.read(size // 512 - 8, 4096) == Y


def test_a_disk_that_cannot_be_resized_says_so(server: Serving) -> None:
    """It is the disk that cannot, not its layers; a layer that keeps the new size needs it not."""
    server.add(Layer(Ram()))
    for size in (2 * MIB, MIB // 2):
        with pytest.raises(VhostBlkError, match="s1: Ram has no method resize: it has the size"):
            server.run(server.operations.resize("s1", size))
        assert server.devices[0].blk.capacity_sectors == MIB // 512
    server.add(make("cow|python:server_kit.disks:Ram,size=1M"))
    assert server.run(server.operations.resize("s2", 2 * MIB)) == {"size": 2 * MIB}


def test_the_same_image_is_served_with_other_layers(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """The image's own lock is no obstacle, however many layers are in front of either."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    guest = vhost_user_guest(server.add_written(f"{image}"))
    guest.write(0, X)
    for text in (f"zeroes|{image}", f"pause|zeroes|file:{image},cache=none", f"{image}"):
        server.run(server.operations.replace("s1", text))
        assert server.devices[0].backing.name == str(parse(text))
        assert guest.read(0, 4096) == X
        with pytest.raises(VhostBlkError, match="in use"):
            File(image).open()
    guest.write(8, Y)
    guest.flush()
    assert image.read_bytes()[:8192] == X + Y


MODULE = """
from server_kit.disks import Ram

class Mine(Ram):
    def inherit(self, before):
        self.data = before.data
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a module with a disk, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "mine_behind_layers.py"
    path.write_text(MODULE)
    yield path
    sys.modules.pop(path.stem, None)


def test_new_code_behind_layers(server: Serving, vhost_user_guest: Connect, module: Path) -> None:
    """The layers are made anew, set and counted as before, and the disk has what was in it."""
    guest = vhost_user_guest(server.add_written(f"zeroes|python:{module.stem}:Mine,size=1M"))
    guest.write(8, X)
    server.layer("zeroes", set={"unmap": "on"})
    old = server.devices[0].backing.disk
    server.run(server.operations.reload("s1"))
    assert server.devices[0].backing.disk is not old
    assert guest.read(8, 4096) == X
    assert server.layers_shown() == [
        {"name": "zeroes", "settings": {"unmap": True, "zero_writes": 0, "zero_bytes": 0}}
    ]


LAYERED = """
from server_kit.disks import Ram
from vhostblk.layers import Layer

class Counting(Layer):
    name = "counting"
    reads = 0

    def read(self, offset, views):
        self.reads += 1
        return self.under.read(offset, views)

    def settings(self):
        return {"reads": self.reads}

    def inherit(self, before):
        self.reads = before.reads
        return super().inherit(before)

class Store(Ram):
    def inherit(self, before):
        self.data = before.data

def stack():
    return Counting(Store())
"""


def test_new_code_of_a_layer(server: Serving, vhost_user_guest: Connect, module: Path) -> None:
    """A layer of a program's own is loaded again as its disk is: its class is another one then."""
    module.write_text(LAYERED)
    guest = vhost_user_guest(server.add_written(f"zeroes|python:{module.stem}:stack"))
    guest.write(0, X)
    assert guest.read(0, 4096) == X
    module.write_text(LAYERED.replace('"reads":', '"seen":'))
    server.run(server.operations.reload("s1"))
    assert guest.read(0, 4096) == X
    rows = cast("list[LayerRow]", server.run(server.operations.layers("s1")))
    assert [(row["name"], row["settings"].get("seen")) for row in rows] == [
        ("zeroes", None),
        ("counting", 2),
    ]


class Keeping(Layer):
    """Keeps something that no other object has."""

    name = "keeping"
    kept = b""

    def save(self) -> bytes:
        return self.kept

    def restore(self, data: bytes) -> None:
        self.kept = data


def test_new_code_is_not_loaded_behind_a_layer_that_would_lose_something(
    server: Serving, module: Path
) -> None:
    """A layer that keeps something and cannot take it over is told of, and goes on."""
    spec = parse(f"python:{module.stem}:Mine,size=1M")
    server.add_from(spec, Keeping(make(spec)))
    with pytest.raises(VhostBlkError, match="s1: the layer keeping would lose what it keeps: giv"):
        server.run(server.operations.reload("s1"))


# ---- locks and marks ----------------------------------------------------------------------------


def test_a_file_behind_layers_is_locked_while_rings_run(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """As the file by itself would be: the lock, and the start value of its write cache."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    path = server.add_written(f"pause|zeroes|file:{image},lock=while-running,cache=writethrough")
    other = File(image)
    other.open()
    other.close()
    guest = vhost_user_guest(path)
    guest.write(0, X)
    assert not guest.config().writeback
    with pytest.raises(VhostBlkError, match="in use"):
        other.open()
    guest.stop()
    other.open()
    other.close()


def test_an_image_of_another_format_is_noticed_behind_layers(
    server: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is served raw, with the warning that it would have by itself."""
    image = tmp_path / "disk.img"
    image.write_bytes(b"QFI\xfb".ljust(MIB, b"\0"))
    server.add_written(f"pause|zeroes|{image}")
    assert f"{image} begins like a qcow2 image" in caplog.text


def test_a_file_behind_layers_bears_the_mark_of_what_is_under_way(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """A front-end with an inflight region leaves its mark on the image, as without layers."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    guest = vhost_user_guest(server.add_written(f"pause|zeroes|{image}"), queues=1)
    guest.write(0, X)
    (number,) = server.ask(lambda: tuple(server.devices[0].tenure.marks._ours))
    other = File(image, locking=Locking.OFF)
    other.open()
    assert until(lambda: other.marked_by_others(number))
    other.close()
