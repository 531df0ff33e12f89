"""What an operator can do while devices are served."""

import os
from collections.abc import Callable

import pytest
from server_kit.disks import Ram
from server_kit.serving import Serving

from vhostblk.disk.memory import Memory
from vhostblk.guest import Guest
from vhostblk.server.jsonrpc import Json, NoDevice

Connect = Callable[..., Guest]
MIB = 1 << 20


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
