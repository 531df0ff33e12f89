"""Stacks of layers when things go wrong, or change: below the core, above it, and on both sides."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_kit.disks import Keeper, Ram, Saving, Slow, Stuck
from server_kit.left import fake_guests
from server_kit.replacing import replace
from server_kit.serving import Serving, names, serving, until

from vhostblk.disk.file import File
from vhostblk.disk.layer import Layer
from vhostblk.disk.memory import Memory
from vhostblk.disk.offset import Offset
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, Request, StatusError
from vhostblk.guest.errors import BrokenQueueError
from vhostblk.server import change, device

Connect = Callable[..., Guest]
MIB = 1 << 20
X, Y = b"x" * 4096, b"y" * 4096


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core."""
    with serving("native", workers=2) as running:
        yield running


def whole(disk: object) -> Offset:
    return Offset(disk, start=0, size=MIB)


STACKS: dict[str, Callable[[object], Layer]] = {
    "core": lambda disk: whole(whole(disk)),
    "python|core": lambda disk: Layer(whole(disk)),
    "core|python|core": lambda disk: whole(Layer(whole(disk))),
}


@pytest.mark.parametrize("stack", STACKS)
def test_a_kept_view_breaks_the_queue(
    stack: str,
    server: Serving,
    vhost_user_guest: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever layers are between; the memory stays mapped as long as the disk has it."""
    monkeypatch.setattr(device, "EXHUME_SECONDS", 0.02)
    disk = Keeper()
    before = fake_guests()
    guest = vhost_user_guest(server.add(STACKS[stack](disk), num_queues=2), queues=2)
    with pytest.raises((BrokenQueueError, StatusError)):
        guest.read(0, 4096, queue=0)
    guest.queues[0].wait_broken(5)
    guest.write(0, X, queue=1)
    guest.close()
    served = server.devices[0]
    assert until(lambda: server.ask(served.dead) > 0)
    assert until(lambda: "queue 0 is broken: disk kept a view of guest memory" in caplog.text)
    assert fake_guests() == before + 1
    disk.kept.clear()
    assert until(lambda: fake_guests() == before)
    assert until(lambda: server.ask(served.dead) == 0)


@pytest.mark.parametrize("stack", STACKS)
def test_a_disk_that_is_stuck_below_layers(
    stack: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """The guest is told in time, and the server ends; the late result changes nothing."""
    disk = Stuck()
    guest = vhost_user_guest(server.add(STACKS[stack](disk), drain_seconds=0.05))
    guest.submit(Request.read(0, 4096))
    assert disk.stuck.wait(5)
    guest.stop()
    assert server.ask(server.devices[0].dead) == 1
    disk.let_go.set()
    assert until(lambda: server.ask(server.devices[0].dead) == 0)
    guest.close()
    server.stop()
    assert names(disk.calls)[-1] == "close"


@pytest.mark.parametrize("stack", STACKS)
def test_closing_with_requests_under_way(
    stack: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """What waits at the bottom is cancelled; nothing is left behind."""
    disk = Slow()
    guest = vhost_user_guest(server.add(STACKS[stack](disk), drain_seconds=0.05))
    disk.set(free=False)
    for sector in range(0, 64, 8):
        guest.submit(Request.read(sector, 4096))
    assert until(lambda: disk.waiting == 8)
    server.stop()
    assert disk.cancelled == 8
    assert disk.waiting == 0


@pytest.mark.parametrize("stack", STACKS)
def test_another_stack_takes_its_place(
    stack: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """A device goes on with another stack behind it, or as it was if that cannot be served."""
    image = tmp_path / "disk.img"
    image.write_bytes(Y * (MIB // 4096))
    disk = Ram(MIB)
    guest = vhost_user_guest(server.add(STACKS[stack](disk), num_queues=2), queues=2)
    guest.write(0, X)
    with pytest.raises(VhostBlkError):
        replace(server, STACKS[stack](File(tmp_path / "nothing")))
    assert guest.read(0, 4096, queue=1) == X
    replace(server, STACKS[stack](File(image)))
    assert names(disk.calls)[-2:] == ["flush", "close"]
    assert guest.read(0, 4096, queue=1) == Y
    guest.write(0, X)
    replace(server, Memory(MIB))
    assert image.read_bytes()[:4096] == X
    assert guest.read(0, 4096) == bytes(4096)


@pytest.mark.parametrize("stack", STACKS)
def test_queues_move_between_workers(
    stack: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """Layers of a queue's own go with it, and those that are shared are shared."""
    guest = vhost_user_guest(server.add(STACKS[stack](Ram(MIB)), num_queues=2), queues=2)
    guest.write(0, X)
    for worker in (1, 0, 1):
        for index in (0, 1):
            assert server.run(change.move(server.devices[0], index, worker)) == worker
            assert guest.read(0, 4096, queue=index) == X


@pytest.mark.parametrize("stack", ["core|python", "python|core", "core|python|core"])
def test_a_stack_is_put_down_and_taken_up(
    stack: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """As by an upgrade that is called off: opened again with what it held, and served on."""
    disk = Saving()
    guest = vhost_user_guest(server.add({**STACKS, "core|python": whole}[stack](disk)))
    guest.write(0, X)
    backing = server.devices[0].backing
    for _ in range(2):
        saved = server.run(backing.put_down(seconds=5))
        disk.data = bytearray(MIB)
        server.run(backing.take_up(saved))
        assert guest.read(0, 4096) == X
    assert names(disk.calls).count("open") == 3


def test_a_layer_of_the_core_inside_a_disk_says_that_it_does_nothing(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Called in Python it cannot do what it is for: that is an error, and no silence."""

    class Hidden(Ram):
        def __init__(self) -> None:
            super().__init__(MIB)
            self.inside = whole(Memory(MIB))

        def read(self, offset: int, views: object) -> None:
            self.inside.read(offset, views)  # type: ignore[arg-type]

    guest = vhost_user_guest(server.add(Hidden()))
    with pytest.raises(StatusError):
        guest.read(0, 4096)
    assert "layer offset is run by the C core, and this is no device of it" in caplog.text
