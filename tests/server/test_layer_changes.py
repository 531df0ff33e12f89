"""What an operator does with layers, and with a disk behind layers, while a guest uses it."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from server_kit.disks import Ram
from server_kit.serving import Serving, until

from vhostblk.disk.grammar import parse
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.null import Null
from vhostblk.disk.zeroes import Zeroes
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest
from vhostblk.server.jsonrpc import Json, NoDevice, RpcError, bind, method
from vhostblk.server.layers import Order

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


# ---- asking and setting -------------------------------------------------------------------------


def test_layers_are_listed_with_names_of_their_own(server: Serving) -> None:
    """The outermost first; where two have one name, each has a number."""
    server.add_written("zeroes|pause|zeroes:unmap=on|memory:1M")
    rows = cast("list[LayerRow]", server.run(server.operations.layers("s1")))
    assert [row["name"] for row in rows] == ["zeroes:1", "pause", "zeroes:2"]
    assert [row["commands"] for row in rows] == [[], ["pause", "resume"], []]
    assert rows[2]["settings"] == {"unmap": True, "zero_writes": 0, "zero_bytes": 0}
    server.add_written("memory:1M")
    assert server.run(server.operations.layers("s2")) == []
    with pytest.raises(NoDevice):
        server.run(server.operations.layers("s3"))


def test_what_is_set_is_what_is_shown(server: Serving, vhost_user_guest: Connect) -> None:
    """The layer, the status document, and the disk as it is written from then on, say the same."""
    guest = vhost_user_guest(server.add_written("zeroes|zeroes:unmap=on|null:1M"))
    guest.write(0, bytes(4096))
    server.layer("zeroes:2", set={"unmap": False})
    server.layer("zeroes:1", set={"unmap": "on"})
    assert server.layers_shown() == [
        {"name": "zeroes:1", "settings": {"unmap": True, "zero_writes": 1, "zero_bytes": 4096}},
        {"name": "zeroes:2", "settings": {"unmap": False, "zero_writes": 0, "zero_bytes": 0}},
    ]
    assert server.devices[0].backing.name == "zeroes:unmap=on|zeroes:unmap=off|null:1M"


class Failing(Zeroes):
    """Has a command that fails."""

    commands = ("work",)

    def work(self) -> None:
        raise OSError(28, "No space left on device")


def test_what_was_set_stays_set_when_the_command_fails(server: Serving) -> None:
    """It is shown and written; the error is the command's."""
    server.add_from(parse("zeroes|null:1M"), Failing(Null(MIB)))
    with pytest.raises(OSError, match="No space left"):
        server.layer("zeroes", set={"unmap": "on"}, do="work")
    assert server.devices[0].backing.name == "zeroes:unmap=on|null:1M"
    with pytest.raises(VhostBlkError, match="has no command 'fly'"):
        server.layer("zeroes", set={"unmap": "off"}, do="fly")
    assert server.devices[0].backing.name == "zeroes:unmap=on|null:1M"


def test_what_a_command_sets_is_written_too(server: Serving, vhost_user_guest: Connect) -> None:
    """What is set last stands last, as one option may hold for others."""
    vhost_user_guest(server.add_written("pause:ops=flush,file=/x|null:1M"))
    server.layer("pause", set={"ops": "read"}, do="pause")
    assert server.devices[0].backing.name == "pause:file=/x,ops=read,paused=on|null:1M"
    server.layer("pause", do="resume")
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
        server.layer(name, **what)
    assert "\n" not in str(caught.value)
    guest.write(0, X)


def test_errors_of_a_layer_cost_nothing_else(server: Serving, vhost_user_guest: Connect) -> None:
    """One whose settings raise is listed all the same; a command's OSError is told as it is."""
    guest = vhost_user_guest(server.add(Odd(Ram())))
    with pytest.raises(OSError, match="No space left"):
        server.layer("odd", do="error")
    guest.flush()
    assert server.layers_shown() == [{"name": "odd", "settings": {"error": "KeyError: 'flushes'"}}]


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
        work = pool.submit(server.layer, "busy", do="work")
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
    guest = vhost_user_guest(server.add_written(f"zeroes|cow|{image}"))
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
        work = pool.submit(server.layer, "busy", do="work")
        assert busy.begun.wait(10)
        removed = pool.submit(lambda: server.run(server.operations.remove("s1")))
        assert until(lambda: layers._ended)
        with pytest.raises(VhostBlkError, match="its disk is exchanged or closed now"):
            server.run(layers.order(Order("busy", {})))
        busy.go_on.set()
        assert cast("Mapping[str, Json]", work.result(10))["result"] == {"done": True}
        assert removed.result(10) is None
