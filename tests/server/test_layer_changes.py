"""What an operator does with layers, and with a disk behind layers, while a guest uses it."""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from server_kit.disks import Ram
from server_kit.serving import Serving, until

from vhostblk.disk.file import File, Locking
from vhostblk.disk.grammar import parse
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.make import make
from vhostblk.disk.null import Null
from vhostblk.disk.zeroes import Zeroes
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest
from vhostblk.server.jsonrpc import Json, NoDevice, RpcError, bind, method
from vhostblk.server.layers import Order
from vhostblk.server.status import status

if TYPE_CHECKING:
    from vhostblk.server.layers import LayerRow

Connect = Callable[..., Guest]
MIB = 1 << 20
X, Y = b"x" * 4096, b"y" * 4096


class Odd(Layer):
    """Counts its flushes, and does all that a layer should not."""

    name = "odd"
    commands = ("bug", "error", "refuse")

    def __init__(self, below: object) -> None:
        super().__init__(below)
        self.flushes = 0

    def settings(self) -> Mapping[str, Value]:
        if self.flushes:
            raise KeyError("flushes")
        return {"flushes": self.flushes}

    def change(self, values: Mapping[str, str]) -> None:
        raise ZeroDivisionError(values)

    def bug(self) -> None:
        raise KeyError("x")

    def error(self) -> None:
        raise OSError(28, "No space left on device")

    def refuse(self) -> None:
        raise VhostBlkError("not today")

    def flush(self) -> None:
        self.flushes += 1


def written(server: Serving, text: str) -> Path:
    """Serve a disk that is written so."""
    spec = parse(text)
    return server.add_from(spec, make(spec))


def layer(server: Serving, name: str, **what: Json) -> Json:
    return server.run(server.operations.layer("s1", name, **what))  # type: ignore[arg-type]


def shown(server: Serving) -> object:
    """Return what the status document says of the layers."""
    server.run(server.operations.status("s1"))
    return server.ask(lambda: status(server.devices[0])["layers"])


# ---- asking and setting -------------------------------------------------------------------------


def test_layers_are_listed_with_names_of_their_own(server: Serving) -> None:
    """The outermost first; where two have one name, each has a number."""
    written(server, "zeroes|pause|zeroes:unmap=on|memory:1M")
    rows = cast("list[LayerRow]", server.run(server.operations.layers("s1")))
    assert [row["name"] for row in rows] == ["zeroes:1", "pause", "zeroes:2"]
    assert [row["commands"] for row in rows] == [[], ["pause", "resume"], []]
    assert rows[2]["settings"] == {"unmap": True, "zero_writes": 0, "zero_bytes": 0}
    written(server, "memory:1M")
    assert server.run(server.operations.layers("s2")) == []
    with pytest.raises(NoDevice):
        server.run(server.operations.layers("s3"))


def test_what_is_set_is_what_is_shown(server: Serving, vhost_user_guest: Connect) -> None:
    """The layer, the status document, and the disk as it is written from then on, say the same."""
    guest = vhost_user_guest(written(server, "zeroes|zeroes:unmap=on|null:1M"))
    guest.write(0, bytes(4096))
    layer(server, "zeroes:2", set={"unmap": False})
    layer(server, "zeroes:1", set={"unmap": "on"})
    assert shown(server) == [
        {"name": "zeroes:1", "settings": {"unmap": True, "zero_writes": 1, "zero_bytes": 4096}},
        {"name": "zeroes:2", "settings": {"unmap": False, "zero_writes": 0, "zero_bytes": 0}},
    ]
    assert server.devices[0].backing.name == "zeroes:unmap=on|zeroes:unmap=off|null:1M"


def test_what_a_command_sets_is_written_too(server: Serving, vhost_user_guest: Connect) -> None:
    """What is set last stands last, as one option may hold for others."""
    vhost_user_guest(written(server, "pause:ops=flush,file=/x|null:1M"))
    layer(server, "pause", set={"ops": "read"}, do="pause")
    assert server.devices[0].backing.name == "pause:file=/x,ops=read,paused=on|null:1M"
    layer(server, "pause", do="resume")
    assert server.devices[0].backing.name == "pause:file=/x,ops=read,paused=off|null:1M"


@pytest.mark.parametrize(
    ("name", "what", "says"),
    [
        ("slow", {}, r"s1: no layer is called 'slow' \(there are zeroes:1, odd, zeroes:2\)"),
        ("zeroes", {}, "s1: several layers are called 'zeroes': say which of zeroes:1, odd, zer"),
        ("zeroes:3", {}, "no layer is called 'zeroes:3'"),
        ("zeroes:1", {"do": "fly"}, r"s1: zeroes:1 has no command 'fly' \(there are none\)"),
        ("odd", {"do": "open"}, r"odd has no command 'open' \(there are bug, error, refuse\)"),
        ("zeroes:1", {"set": {"speed": "1"}}, r"s1: zeroes: no option 'speed' \(there is unmap\)"),
        ("zeroes:1", {"set": {"unmap": None}}, "s1: unmap is set to a text, a number, true or f"),
        ("zeroes:1", {"set": {"unmap": "o\nn"}}, "unmap is set to a text"),
        ("odd", {"set": {"a": 1}}, "s1: the layer odd raised in change: ZeroDivisionError"),
        ("odd", {"do": "bug"}, "s1: the layer odd raised in bug: KeyError: 'x'"),
        ("odd", {"do": "refuse"}, "s1: odd: not today"),
    ],
)
def test_what_cannot_be_is_one_line(
    name: str, what: dict[str, Json], says: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """It says what there is; the guest does not notice."""
    guest = vhost_user_guest(server.add(Zeroes(Odd(Zeroes(Null(MIB))))))
    with pytest.raises(VhostBlkError, match=says) as caught:
        layer(server, name, **what)
    assert "\n" not in str(caught.value)
    guest.write(0, X)


def test_errors_of_a_layer_cost_nothing_else(server: Serving, vhost_user_guest: Connect) -> None:
    """One whose settings raise is listed all the same; a command's OSError is told as it is."""
    guest = vhost_user_guest(server.add(Odd(Ram())))
    with pytest.raises(OSError, match="No space left"):
        layer(server, "odd", do="error")
    guest.flush()
    assert shown(server) == [{"name": "odd", "settings": {"error": "KeyError: 'flushes'"}}]


def test_a_method_takes_an_object() -> None:
    """What is to be set is a JSON object, or left out."""

    async def call(values: dict[str, Json] | None = None) -> Json:
        return values

    chosen = method(call)
    assert bind(chosen, {"values": {"a": 1}}) == {"values": {"a": 1}}
    assert bind(chosen, {"values": None}) == {"values": None}
    with pytest.raises(RpcError, match="values is an object or null, not 5"):
        bind(chosen, {"values": 5})


class Busy(Layer):
    """Takes its time."""

    name = "busy"
    commands = ("work",)

    def __init__(self, below: object) -> None:
        super().__init__(below)
        self.begun, self.go_on = threading.Event(), threading.Event()

    async def work(self) -> Mapping[str, Value]:
        self.begun.set()
        await asyncio.to_thread(self.go_on.wait, 10)
        return {"done": True}


def test_no_disk_is_exchanged_under_a_layer_that_works(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """What it does may be with a file that the next disk uses, too: it ends first, or is done."""
    busy = Busy(Ram())
    guest = vhost_user_guest(server.add(busy))
    with ThreadPoolExecutor() as pool:
        work = pool.submit(layer, server, "busy", do="work")
        assert busy.begun.wait(10)
        with pytest.raises(VhostBlkError, match="s1: a layer is doing what it was told to: try ag"):
            server.run(server.operations.replace("s1", "memory:1M"))
        guest.write(0, X)  # it goes on
        busy.go_on.set()
        assert cast("Mapping[str, Json]", work.result(10))["result"] == {"done": True}
    server.run(server.operations.replace("s1", "memory:1M"))
    assert guest.read(0, 4096) == bytes(4096)


def test_a_layer_is_told_to_do_its_last_when_no_request_comes_any_more(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """What a guest has written until then is on the disk that takes the place of the stack."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    guest = vhost_user_guest(written(server, f"zeroes|cow|{image}"))
    guest.write(0, X)
    assert image.read_bytes() == bytes(MIB)
    for wrong, says in (
        ({"layer": "cow"}, "layer and do go together"),
        ({"layer": "cow", "do": "fly"}, "s1: cow has no command 'fly'"),
        ({"layer": "zeroes", "do": "commit"}, "s1: zeroes has no command 'commit'"),
    ):
        with pytest.raises(VhostBlkError, match=says):
            server.run(server.operations.replace("s1", f"{image}", **wrong))
        assert server.devices[0].backing.name == f"zeroes|cow|file:{image}"
    guest.write(8, Y)
    server.run(server.operations.replace("s1", f"{image}", layer="cow", do="commit"))
    assert guest.read(0, 8192) == X + Y
    guest.flush()
    assert image.read_bytes()[:8192] == X + Y


def test_a_device_ends_behind_what_its_layers_do(server: Serving) -> None:
    """A removal waits for it, and nothing new is begun."""
    busy = Busy(Ram())
    server.add(busy)
    layers = server.devices[0].backing.layers
    with ThreadPoolExecutor() as pool:
        work = pool.submit(layer, server, "busy", do="work")
        assert busy.begun.wait(10)
        removed = pool.submit(lambda: server.run(server.operations.remove("s1")))
        assert until(lambda: layers._ended)
        with pytest.raises(VhostBlkError, match="its disk is exchanged or closed now"):
            server.run(layers.order(Order("busy", {})))
        busy.go_on.set()
        assert cast("Mapping[str, Json]", work.result(10))["result"] == {"done": True}
        assert removed.result(10) is None


# ---- size, disk, code ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_disk_behind_layers_is_resized(
    kind: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Larger and smaller, while a guest uses it; what it holds stays."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    disks = {"memory": "memory:1M", "file": f"file:{image}"}
    guest = vhost_user_guest(written(server, f"zeroes|pause|{disks[kind]}"))
    guest.write(0, X)
    for size in (2 * MIB, MIB // 2):
        assert server.run(server.operations.resize("s1", size)) == {"size": size}
        assert guest.config().capacity == size // 512
        assert guest.read(0, 4096) == X
        guest.write(size // 512 - 8, Y)
        assert guest.read(size // 512 - 8, 4096) == Y


def test_a_disk_that_cannot_be_resized_says_so(server: Serving) -> None:
    """It is the disk that cannot, not its layers."""
    server.add(Layer(Ram()))
    with pytest.raises(VhostBlkError, match=r"s1: layer\|Ram has no method resize"):
        server.run(server.operations.resize("s1", 2 * MIB))


def test_the_same_image_is_served_with_other_layers(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """The image's own lock is no obstacle, however many layers are in front of either."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    guest = vhost_user_guest(written(server, f"{image}"))
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
    guest = vhost_user_guest(written(server, f"zeroes|python:{module.stem}:Mine,size=1M"))
    guest.write(8, X)
    layer(server, "zeroes", set={"unmap": "on"})
    old = server.devices[0].backing.disk
    server.run(server.operations.reload("s1"))
    assert server.devices[0].backing.disk is not old
    assert guest.read(8, 4096) == X
    assert shown(server) == [
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
    guest = vhost_user_guest(written(server, f"zeroes|python:{module.stem}:stack"))
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
    path = written(server, f"pause|zeroes|file:{image},lock=while-running,cache=writethrough")
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
    written(server, f"pause|zeroes|{image}")
    assert f"{image} begins like a qcow2 image" in caplog.text


def test_a_file_behind_layers_bears_the_mark_of_what_is_under_way(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """A front-end with an inflight region leaves its mark on the image, as without layers."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    guest = vhost_user_guest(written(server, f"pause|zeroes|{image}"), queues=1)
    guest.write(0, X)
    (number,) = server.ask(lambda: tuple(server.devices[0].tenure.marks._ours))
    other = File(image, locking=Locking.OFF)
    other.open()
    assert until(lambda: other.marked_by_others(number))
    other.close()
