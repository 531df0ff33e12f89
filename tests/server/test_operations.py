"""What an operator can do while devices are served."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server_kit.disks import Ram, Slow
from server_kit.serving import Serving, names, until

from vhostblk.disk.grammar import parse
from vhostblk.disk.make import make
from vhostblk.disk.memory import Memory
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, GuestError, Request
from vhostblk.server import change
from vhostblk.server.jsonrpc import Json, NoDevice

Connect = Callable[..., Guest]
MIB = 1 << 20
X = b"x" * 4096


def fields(answer: Json) -> dict[str, Json]:
    assert isinstance(answer, dict)
    return answer


def test_list_names_what_is_served(server: Serving, vhost_user_guest: Connect) -> None:
    """In the order it was added, with what a person needs to choose."""
    paths = [server.add(Ram(MIB), read_only=True), server.add(Memory(2 * MIB), name="b")]
    vhost_user_guest(paths[1])
    rows = server.run(server.operations.list_devices())
    assert rows == [
        {
            "name": "s1",
            "disk": "Ram",
            "size": MIB,
            "read_only": True,
            "socket_path": str(paths[0]),
            "front_end_connected": False,
        },
        {
            "name": "b",
            "disk": "Memory",
            "size": 2 * MIB,
            "read_only": False,
            "socket_path": str(paths[1]),
            "front_end_connected": True,
        },
    ]


def test_status_is_of_one_or_all(server: Serving) -> None:
    """The document of the device that is named, or all of them by name."""
    server.add(Memory(MIB))
    server.add(Memory(MIB))
    one = fields(server.run(server.operations.status("s2")))
    assert one["name"] == "s2"
    every = fields(server.run(server.operations.status()))
    assert [*every] == ["s1", "s2"]
    assert every["s2"] == one


def test_device_that_is_not_there_is_told(server: Serving) -> None:
    """With the names of those that are."""
    with pytest.raises(NoDevice, match=r"^no device is called 'x'; there are none$"):
        server.run(server.operations.status("x"))
    server.add(Memory(MIB))
    with pytest.raises(NoDevice, match="there are s1"):
        server.run(server.operations.status("x"))


def test_version_says_who_answers(server: Serving, engine: str) -> None:
    """The process and its data plane."""
    told = fields(server.run(server.operations.version()))
    assert (told["engine"], told["pid"]) == (engine, os.getpid())


def test_two_devices_have_two_names(server: Serving) -> None:
    """A name that is taken is refused, and the socket of the second is gone."""
    server.add(Memory(MIB), name="a")
    with pytest.raises(Exception, match="a device is called 'a' already"):
        server.add(Memory(MIB), name="a")
    assert server.run(server.operations.list_devices()) is not None
    assert not (server.directory / "s2").exists()


def test_remove_ends_a_device_and_no_other(server: Serving, vhost_user_guest: Connect) -> None:
    """Its disk is flushed and closed, its socket goes, its name is free; others serve on."""
    gone, other = Ram(), Ram()
    path, stays = server.add(gone), server.add(other)
    guest = vhost_user_guest(stays)
    guest.write(0, X)
    assert server.run(server.operations.remove("s1")) is None
    assert names(gone.calls) == ["open", "flush", "close"]
    assert not path.exists()
    with pytest.raises(NoDevice):
        server.run(server.operations.remove("s1"))
    assert guest.read(0, 4096) == X
    again = server.add(Ram(), name="s1")
    with Guest.connect(again) as new:
        assert new.read(0, 512) == bytes(512)


def test_remove_of_a_device_in_use_needs_force(server: Serving, vhost_user_guest: Connect) -> None:
    """Refused, and nothing happens; forced, what is in flight is drained first."""
    slow = Slow()
    path = server.add(slow, drain_seconds=10.0)
    guest = vhost_user_guest(path)
    with pytest.raises(VhostBlkError, match=r"^s1: a front-end is connected: unplug the disk"):
        server.run(server.operations.remove("s1"))
    guest.write(0, X)
    slow.set(free=False)
    guest.submit(Request.write(8, X))
    assert until(lambda: slow.waiting == 1)
    removing = threading.Thread(
        target=lambda: server.run(server.operations.remove("s1", force=True))
    )
    removing.start()
    slow.set(free=True)
    removing.join()
    assert slow.data[:8192] == X + X
    assert not path.exists()
    with pytest.raises(GuestError):
        guest.read(0, 512)


def test_remove_tells_of_writes_that_may_be_lost(server: Serving) -> None:
    """The last flush failed; the device is gone all the same."""

    class Bad(Ram):
        def flush(self) -> None:
            raise OSError(5, "no")

    path = server.add(Bad())
    with pytest.raises(VhostBlkError, match="s1: the last flush failed"):
        server.run(server.operations.remove("s1"))
    assert not path.exists()
    assert server.run(server.operations.list_devices()) == []


def test_changes_of_one_device_wait_for_each_other(server: Serving) -> None:
    """What was asked of a device that is removed meanwhile is told so."""
    slow = threading.Event()

    class Opens(Ram):
        def open(self) -> None:
            slow.wait(10)

    server.add(Ram())

    async def replace() -> None:
        async with server.operations._changing("s1") as service:
            await change.replace(service.device, Opens(), None)

    async def remove() -> None:
        await server.operations.remove("s1")

    async def resize() -> None:
        await server.operations.resize("s1")

    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(lambda: server.run(replace()))]
        lock = server.operations._find("s1").lock
        assert until(lambda: server.ask(lock.locked))
        asked.append(pool.submit(lambda: server.run(remove())))
        asked.append(pool.submit(lambda: server.run(resize())))
        assert server.run(server.operations.list_devices()) != []
        slow.set()
    errors = [one.exception() for one in asked]
    assert errors.count(None) >= 2
    assert all("removed meanwhile" in str(one) or "no device" in str(one) for one in errors if one)
    assert server.run(server.operations.list_devices()) == []


MODULE = """
from server_kit.disks import Ram

class Mine(Ram):
    def __init__(self, size: int, fill: str = "o"):
        super().__init__(size)
        self.data[:] = fill.encode() * size
"""
INHERITS = """
    def inherit(self, before):
        self.data = before.data
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a file in the current directory that is a module with a disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "mydisk_under_test.py"
    path.write_text(MODULE)
    yield path
    sys.modules.pop(path.stem, None)


def serve_module(server: Serving, module: Path) -> Path:
    source = parse(f"python:{module.stem}:Mine,size=1M,fill=o")
    return server.add_from(source, make(source))


def test_reload_serves_the_new_code(
    server: Serving, vhost_user_guest: Connect, module: Path
) -> None:
    """With the same arguments, to the same guest; what the old object held is gone with it."""
    guest = vhost_user_guest(serve_module(server, module))
    guest.write(0, X)
    module.write_text(MODULE.replace("fill.encode()", "fill.upper().encode()"))
    row = fields(server.run(server.operations.reload("s1")))
    assert row["disk"] == f"python:{module.stem}:Mine,size=1M,fill=o"
    assert guest.read(0, 4096) == b"O" * 4096


def test_reload_can_keep_what_is_in_memory(
    server: Serving, vhost_user_guest: Connect, module: Path
) -> None:
    """A disk whose new code has a method inherit gets the object of the old code."""
    guest = vhost_user_guest(serve_module(server, module))
    guest.write(0, X)
    module.write_text(MODULE + INHERITS)
    server.run(server.operations.reload("s1"))
    assert guest.read(0, 8192) == X + b"o" * 4096
    guest.write(8, X)
    server.run(server.operations.reload("s1"))
    assert guest.read(0, 8192) == X + X


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("this is no Python", "cannot be imported again: SyntaxError"),
        ("1 / 0", "cannot be imported again: ZeroDivisionError"),
        (MODULE.replace("size: int,", ""), "takes no 'size'"),
        (MODULE + "    def open(self):\n        raise KeyError('k')\n", "raised in open: KeyError"),
        (MODULE + "    def inherit(self, before):\n        1 / 0\n", "raised in inherit: Zero"),
        (MODULE + "    write = None\n", "promised writes"),
    ],
)
def test_code_that_does_not_load_changes_nothing(
    text: str, says: str, server: Serving, vhost_user_guest: Connect, module: Path
) -> None:
    """The old object goes on, with all it holds; better code is taken later."""
    guest = vhost_user_guest(serve_module(server, module))
    guest.write(0, X)
    module.write_text(text)
    with pytest.raises(VhostBlkError, match=f"^s1: .*{says}"):
        server.run(server.operations.reload("s1"))
    assert guest.read(0, 4096) == X
    module.write_text(MODULE + INHERITS)
    server.run(server.operations.reload("s1"))
    assert guest.read(0, 4096) == X


def test_reload_is_for_python_disks(server: Serving) -> None:
    """Other disks have no code of their own, and a program's object no module to load."""
    server.add_from(parse("memory:1M"), Memory(MIB))
    server.add(Ram())
    for name in ("s1", "s2"):
        with pytest.raises(VhostBlkError, match="is no python: disk"):
            server.run(server.operations.reload(name))
