"""
Guest memory that is taken away while it is in use: the C core's affair.

The reference engine cannot catch a SIGBUS, which ends its process (docs: the engines).
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_kit.disks import SIZE, Ram, Slow
from server_kit.left import fake_guests
from server_kit.serving import Serving, serving, until

from vhostblk.disk.file import File
from vhostblk.disk.layer import Layer
from vhostblk.disk.memory import Memory
from vhostblk.disk.offset import Offset
from vhostblk.guest.guest import Guest
from vhostblk.guest.hostile import Case, Outcome, Trap, attempt, chain, header, status
from vhostblk.guest.layout import Region
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.queue import Queue
from vhostblk.guest.shape import Buffer
from vhostblk.spec.virtio_blk import RequestType

Connect = Callable[..., Guest]
X = b"x" * 4096
PLUGGED = Region(1 << 32, 1 << 20)
"""Memory that the rings are not in."""


def _file(directory: Path) -> File:
    image = directory / "disk.img"
    image.write_bytes(bytes(SIZE))
    return File(image)


def _whole(disk: object) -> Offset:
    return Offset(disk, start=0, size=SIZE)


DISKS: dict[str, Callable[[Path], object]] = {
    "memory": lambda _: Memory(SIZE),
    "file": _file,
    "python": lambda _: Ram(),
    "core|memory": lambda _: _whole(Memory(SIZE)),
    "core|python": lambda _: _whole(Ram()),
    "python|core|memory": lambda _: Layer(_whole(Memory(SIZE))),
    "python|core|file": lambda directory: Layer(_whole(_file(directory))),
    "python|core|python": lambda _: Layer(_whole(Ram())),
}


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core."""
    with serving("native") as running:
        yield running


def _transfer(kind: RequestType, gpa: int) -> Case:
    def set_up(queue: Queue) -> Trap:
        buffer = Buffer(gpa, 4096, kind is RequestType.IN)
        return chain(queue, header(queue, kind), buffer, status(queue))

    return Case("a transfer", Outcome.IOERR, set_up)


@pytest.mark.parametrize("kind", [RequestType.IN, RequestType.OUT])
@pytest.mark.parametrize("disk", DISKS)
def test_data_that_vanish_fail_the_request(
    disk: str, kind: RequestType, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """
    IOERR or a broken queue, never success; another device serves on, and this one the next guest.

    Source: ARCHITECTURE.md, "What a bad guest gets": memory that vanishes.
    """
    path, other = server.add(DISKS[disk](tmp_path)), server.add(Memory(SIZE))
    none = fake_guests()
    with GuestMemory() as memory:
        guest = vhost_user_guest(path, memory=memory)
        bystander = vhost_user_guest(other)
        guest.write(0, X)
        guest.add_region(PLUGGED)
        memory.vanish(PLUGGED.gpa)
        case = _transfer(kind, PLUGGED.gpa + 8192)
        assert attempt(guest.queues[0], case) in {Outcome.IOERR, Outcome.BROKEN}
        bystander.write(0, X)
        guest.close()
        bystander.close()
    assert until(lambda: fake_guests() == none)
    assert vhost_user_guest(path).read(0, 4096) == X


@pytest.mark.parametrize("kind", [RequestType.IN, RequestType.OUT])
def test_data_that_vanish_under_a_request(
    kind: RequestType, server: Serving, vhost_user_guest: Connect
) -> None:
    """A Python disk that is at work on them goes on; its request does not succeed."""
    slow = Slow()
    path = server.add(slow)
    with GuestMemory() as memory:
        guest = vhost_user_guest(path, memory=memory)
        guest.add_region(PLUGGED)
        slow.set(free=False)

        def set_up(queue: Queue) -> Trap:
            trap = _transfer(kind, PLUGGED.gpa).set_up(queue)
            assert until(lambda: slow.waiting == 1)
            memory.vanish(PLUGGED.gpa)
            slow.set(free=True)
            return trap

        outcome = attempt(guest.queues[0], Case("a transfer", Outcome.IOERR, set_up))
        assert outcome in {Outcome.IOERR, Outcome.BROKEN}
        guest.close()
    vhost_user_guest(path).write(0, X)


def test_a_ring_that_vanishes_breaks_its_queue(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """One log line, the err eventfd; the device serves the next guest, and others served on."""
    path, other = server.add(Memory(SIZE)), server.add(Memory(SIZE))
    region = Region(0, 1 << 20)
    with GuestMemory((region,)) as memory:
        guest = vhost_user_guest(path, memory=memory)
        bystander = vhost_user_guest(other)
        guest.write(0, X)
        memory.vanish(region.gpa)
        guest.queues[0].notify()
        guest.queues[0].wait_broken(5)
        bystander.write(0, X)
        assert until(lambda: "queue 0 is broken: guest memory vanished" in caplog.text)
        assert caplog.text.count("is broken") == 1
        guest.close()
    assert vhost_user_guest(path).read(0, 4096) == X


def test_a_queue_is_whole_again_on_whole_memory(server: Serving, vhost_user_guest: Connect) -> None:
    """The region that lost its memory is removed, the queue started anew: it serves."""
    with GuestMemory() as memory:
        path = server.add(Memory(SIZE), num_queues=2)
        guest = vhost_user_guest(path, memory=memory, queues=2)
        queue = guest.queues[0]
        first, last = header(queue), status(queue)
        guest.add_region(PLUGGED)
        memory.vanish(PLUGGED.gpa)
        queue.submit([first, Buffer(PLUGGED.gpa, 4096, writable=True), last])
        queue.wait_broken(5)
        guest.remove_region(PLUGGED.gpa)
        guest.reboot()
        guest.write(0, X, queue=0)
        assert guest.read(0, 4096, queue=1) == X
        guest.close()
