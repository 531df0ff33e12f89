"""The configuration file is read again: devices come and go, sizes change, nobody is disturbed."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from server_kit.serving import Serving, until

from vhostblk.guest import Guest
from vhostblk.server.config_file import read_config
from vhostblk.server.device import Device
from vhostblk.server.reread import Rereader
from vhostblk.server.settings import add_device

Connect = Callable[..., Guest]
MIB = 1 << 20
X = b"x" * 4096


class Followed:
    """A server, its file, and what follows it."""

    def __init__(self, server: Serving, path: Path) -> None:
        self.server = server
        self.path = path
        self.write(self.device("a", "memory:1M"))
        config = read_config(path)

        async def begin() -> Rereader:
            assert server._server is not None
            for one in config.devices:
                await add_device(server._server, one)
            return Rereader(server._server, config)

        self.rereader = server.run(begin())

    def device(self, name: str, disk: str, more: str = "") -> str:
        socket = self.server.directory / name
        return f'[[device]]\nname = "{name}"\ndisk = "{disk}"\nsocket_path = "{socket}"\n{more}\n'

    def holders(self, name: str) -> int:
        """How many front-ends have something of a device."""
        return len(self.server.services[name].device.holders)

    def write(self, *parts: str) -> None:
        self.path.write_text("".join(parts))

    def follow(self, *parts: str) -> list[str]:
        """Write the file, have it read, return what is served."""
        self.write(*parts)
        self.server.run(self.rereader.reread())
        return self.server.ask(lambda: [*self.server.services])


@pytest.fixture
def followed(server: Serving, tmp_path: Path) -> Followed:
    """Serve one device out of a file."""
    return Followed(server, tmp_path / "f.toml")


def test_devices_come_and_go(followed: Followed, vhost_user_guest: Connect) -> None:
    """Others serve on, and their guests notice nothing."""
    a, b = (followed.device(name, "memory:1M") for name in "ab")
    guest = vhost_user_guest(followed.server.directory / "a")
    guest.write(0, X)
    assert followed.follow(a, b) == ["a", "b"]
    with Guest.connect(followed.server.directory / "b") as other:
        other.write(0, X)
    assert until(lambda: not followed.holders("b"))
    assert followed.follow(a) == ["a"]
    assert not (followed.server.directory / "b").exists()
    assert guest.read(0, 4096) == X
    assert followed.follow(a, b) == ["a", "b"]


def test_device_in_use_stays(
    followed: Followed, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Until its front-end has left; the log says what to do."""
    path = followed.server.directory / "a"
    guest = vhost_user_guest(path)
    assert followed.follow("") == ["a"]
    assert "a: is not in the file any more, and a front-end is connected" in caplog.text
    guest.write(0, X)
    guest.close()
    assert until(lambda: not followed.holders("a"))
    assert followed.follow("") == []


def test_sizes_follow(followed: Followed, vhost_user_guest: Connect, tmp_path: Path) -> None:
    """What the file says of memory, what a file of the host is now."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    b = followed.device("b", str(image))
    followed.follow(followed.device("a", "memory:1M"), b)
    guests = [vhost_user_guest(followed.server.directory / name) for name in "ab"]
    image.write_bytes(bytes(3 * MIB))
    followed.follow(followed.device("a", "memory:2M"), b)
    assert [guest.config().capacity * 512 for guest in guests] == [2 * MIB, 3 * MIB]
    for guest in guests:
        assert guest.channel.receive().request == 2


def test_layers_are_set_as_the_file_says(
    followed: Followed, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Where only options of layers, or the size behind them, have changed; else a line says so."""
    path = followed.server.directory / "b"
    a = followed.device("a", "memory:1M")
    followed.follow(a, followed.device("b", "zeroes|pause:ops=flush|memory:1M"))
    guest = vhost_user_guest(path)
    guest.write(0, X)
    followed.follow(a, followed.device("b", "zeroes:unmap=on|pause:ops=read|memory:2M"))
    backing = followed.server.services["b"].device.backing
    assert backing.name == "zeroes:unmap=on|pause:ops=read|memory:1M"
    assert guest.config().capacity * 512 == 2 * MIB
    assert guest.read(0, 4096) == X
    assert "takes a new start" not in caplog.text
    followed.follow(a, followed.device("b", "zeroes|pause:ops=read|memory:2M"))
    assert caplog.text.count("b: disk changed in the file: that takes a new start") == 1
    followed.follow(a, followed.device("b", "zeroes:unmap=on|pause:ops=rd|memory:2M"))
    assert "b: disk changed in the file: that takes a new start, or `vhostblk ctl" in caplog.text
    assert "pause: ops=rd: write some of read" in caplog.text


def test_what_takes_a_new_start_is_said(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    """By key; nothing of it is changed."""
    followed.follow(
        'engine = "reference"\ncontrol = "x"\n',
        followed.device("a", "null:1M", 'serial = "S"\nnum_queues = 2'),
    )
    assert "a: disk, num_queues, serial changed in the file: that takes a new start" in caplog.text
    assert "control, engine, workers, cpus and poll change with a new start only" in caplog.text
    service = followed.server.services["a"]
    assert service.device.options.num_queues == 1


def test_file_that_is_wrong_changes_nothing(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why, and a right one is followed later."""
    for text in ("x", "[[device]]", followed.device("b", "memory:1M") * 2):
        assert followed.follow(text) == ["a"]
    assert caplog.text.count("nothing is changed") == 3
    followed.path.unlink()
    followed.server.run(followed.rereader.reread())
    assert "No such file" in caplog.text
    assert followed.follow(followed.device("b", "memory:1M")) == ["b"]


def test_device_that_fails_leaves_the_others_alone(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    """It is tried again the next time."""
    a, c = followed.device("a", "memory:1M"), followed.device("c", "memory:1M")
    bad = followed.device("b", "/nowhere/at/all")
    assert followed.follow(a, bad, c) == ["a", "c"]
    assert "b: /nowhere/at/all: no such file" in caplog.text
    assert followed.follow(a, followed.device("b", "memory:1M"), c) == ["a", "c", "b"]


def test_what_an_operator_did_stays(followed: Followed) -> None:
    """A device that was added by hand is not in the file; one that was removed comes back."""
    server = followed.server
    row = server.run(server.operations.add("memory:1M", socket_path=str(server.directory / "hand")))
    assert isinstance(row, dict)
    assert row["name"] == "hand"
    a = followed.device("a", "memory:1M")
    assert followed.follow(a) == ["a", "hand"]
    server.run(server.operations.remove("a"))
    assert followed.follow(a) == ["hand"]
    assert followed.follow("") == ["hand"]
    assert followed.follow(a) == ["hand", "a"]


def test_the_end_waits_for_what_the_file_began(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device on its way out is flushed and closed before the data plane goes; nothing follows."""
    flushed: list[str] = []

    async def slowly(device: Device) -> None:
        await asyncio.sleep(0.02)
        flushed.append(device.options.name)

    monkeypatch.setattr(Device, "close", slowly)
    followed.write(followed.device("b", "memory:1M"))

    async def end() -> list[str]:
        followed.rereader.ask()
        await asyncio.sleep(0)
        followed.rereader.ask()
        await followed.rereader.close()
        followed.rereader.ask()
        return [*flushed]

    assert followed.server.run(end()) == ["a"]


def test_a_device_that_another_process_has_is_left_alone(followed: Followed) -> None:
    """Who waited for it while it was handed over does nothing to it any more."""
    service = followed.server.services["a"]
    followed.write(followed.device("a", "memory:2M"))

    async def meanwhile() -> int:
        async with service.lock:
            followed.rereader.ask()
            await asyncio.sleep(0.01)
            services = {**followed.server.services}
            followed.server.services.clear()
        await followed.rereader.close()
        followed.server.services.update(services)
        return service.device.blk.capacity_sectors * 512

    assert followed.server.run(meanwhile()) == MIB
