"""Layers of the core below layers in Python, and any mix of both, served to the fake guest."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from server_kit.disks import Ram, Slow, made
from server_kit.serving import Serving, names, serving, until

from vhostblk.disk.call import Pending, run
from vhostblk.disk.layer import Layer
from vhostblk.disk.memory import Memory
from vhostblk.disk.offset import Offset
from vhostblk.guest import Guest, Range, Request, StatusError

Connect = Callable[..., Guest]
MIB = 1 << 20
X, Y = b"x" * 4096, b"y" * 4096


class Noting(Layer):
    """In Python; hands on, and notes what."""

    def __init__(self, below: object) -> None:
        super().__init__(below)
        self.calls: list[tuple[object, ...]] = []

    def read(self, offset: int, views: Sequence[memoryview]) -> Pending:
        self.calls.append(("read", offset))
        return super().read(offset, views)

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        self.calls.append(("write", offset, fua))
        return super().write(offset, views, fua=fua)


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core."""
    with serving("native") as running:
        yield running


def part(below: object, offset: int = 4096, size: int = MIB // 2) -> Offset:
    return Offset(below, start=offset, size=size)


STACKS: dict[str, Callable[[object], Layer]] = {
    "python|core": lambda disk: Noting(part(disk)),
    "core|python|core": lambda disk: part(Noting(part(disk)), offset=0, size=MIB // 4),
    "three times": lambda disk: part(
        Noting(part(Noting(part(Noting(part(disk, offset=0)), offset=0)), offset=0)),
        size=MIB // 4,
    ),
}


@pytest.mark.parametrize("kind", ["file", "memory", "python", "slow"])
@pytest.mark.parametrize("stack", STACKS)
def test_requests_through_any_mix(
    stack: str, kind: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """What is written is read back, from the place on the disk where all layers put it."""
    disk = made(kind, tmp_path, Slow if kind == "slow" else Ram)
    top = STACKS[stack](disk)
    guest = vhost_user_guest(server.add(top, num_queues=2), queues=2)
    guest.write(8, X)
    guest.write(64, Y, queue=1)
    assert guest.read(8, 4096, queue=1) == X
    assert guest.read(64, 4096) == Y
    guest.flush()
    guest.write_zeroes([Range(8, 4)])
    assert guest.read(8, 4096) == bytes(2048) + X[2048:]
    with pytest.raises(StatusError):
        guest.read(guest.config().capacity, 512)
    if isinstance(disk, Ram | Slow):
        assert disk.data[8192:12288] == bytes(2048) + X[2048:]
        assert disk.data[36864:40960] == Y
        assert disk.data.count(0) == MIB - 8192 + 2048


def test_a_write_that_must_be_stable_is_so_through_all(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """FUA goes through the core and comes out at the disk below, which flushes."""

    class Through(Noting):
        writeback = False

    disk = Ram(MIB)
    top = Through(part(disk))
    guest = vhost_user_guest(server.add(top))
    guest.write(0, X)
    assert top.calls[-1] == ("write", 0, True)
    assert names(disk.calls)[-2:] == ["write", "flush"]


def test_a_flush_by_the_server_goes_through_all(server: Serving, vhost_user_guest: Connect) -> None:
    """A server that ends flushes the disk below everything, then closes it, once."""
    disk = Ram(MIB)
    guest = vhost_user_guest(server.add(Noting(part(Noting(part(disk)), size=MIB // 4))))
    guest.write(0, X)
    guest.stop()
    server.stop()
    assert names(disk.calls)[-3:] == ["write", "flush", "close"]


def test_an_error_of_the_disk_comes_back(server: Serving, vhost_user_guest: Connect) -> None:
    """What the disk below raises is raised in the layer above."""

    class Failing(Ram):
        def read(self, offset: int, views: Sequence[memoryview]) -> None:
            raise OSError(28, f"no space at {offset} for {len(views)}")

    caught: list[int | None] = []

    class Looking(Layer):
        async def read(self, offset: int, views: Sequence[memoryview]) -> None:
            try:
                await run(self.under.read, offset, views)
            except OSError as error:
                caught.append(error.errno)
                raise

    guest = vhost_user_guest(server.add(Looking(part(Failing(MIB)))))
    with pytest.raises(StatusError):
        guest.read(0, 4096)
    assert caught == [28]


def test_cancelled_requests_end_when_the_disk_below_is_done(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """What a guest gives up is cancelled at the bottom; it is dead until it has returned there."""
    disk = Slow(MIB)
    guest = vhost_user_guest(
        server.add(part(Noting(part(disk)), size=MIB // 4), drain_seconds=0.05)
    )
    guest.write(0, X)
    disk.set(free=False)
    guest.submit(Request.read(0, 4096))
    assert until(lambda: disk.waiting == 1)
    guest.stop()
    assert until(lambda: disk.cancelled == 1)
    assert until(lambda: server.ask(server.devices[0].dead) == 0)
    disk.set(free=True)


def test_a_disk_that_grows_and_moves_below_layers(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Memory may be elsewhere behind a resize: nothing is under way meanwhile."""
    guest = vhost_user_guest(
        server.add(Noting(Offset(Memory(MIB), start=0)), num_queues=2), queues=2
    )
    guest.write(0, X)
    for size in (64 * MIB, 2 * MIB, 128 * MIB):
        assert server.run(server.operations.resize("s1", size)) == {"size": size}
        assert guest.read(0, 4096, queue=1) == X
        guest.write(size // 512 - 8, Y)
        assert guest.read(size // 512 - 8, 4096) == Y


def test_more_requests_than_the_core_takes_wait(server: Serving, vhost_user_guest: Connect) -> None:
    """A layer may ask for any number at once; those that find no room have their turn."""
    ends: list[int] = []

    class Many(Layer):
        async def flush(self) -> None:
            views = [bytearray(512) for _ in range(3000)]
            await asyncio.gather(*(run(self.under.read, 0, [memoryview(one)]) for one in views))
            ends.append(sum(one == X[:512] for one in views))

    disk = Slow(MIB)
    guest = vhost_user_guest(server.add(Many(part(disk))))
    guest.write(0, X)
    guest.flush()
    assert ends == [3000]
