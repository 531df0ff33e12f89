"""Layers in Python through real virtqueues, of both formats and both data planes."""

import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server_kit.disks import Ram
from server_kit.serving import Serving, until

from vhostblk.disk.layer import Layer
from vhostblk.disk.make import make
from vhostblk.disk.pause import Pause
from vhostblk.disk.zeroes import Zeroes
from vhostblk.guest import Guest, Range, Request
from vhostblk.server.jsonrpc import Json
from vhostblk.spec.virtio_blk import WRITE_ZEROES_F_UNMAP

Connect = Callable[..., Guest]
MIB = 1 << 20
SECTORS = MIB // 512
X = b"x" * 4096


def data(rng: random.Random, length: int) -> bytes:
    return rng.choice([bytes(length), rng.randbytes(length), bytes(length - 1) + b"\1"])


@pytest.mark.parametrize(
    "text",
    [
        "pause|memory:1M",
        "zeroes|memory:1M",
        "zeroes:unmap=on|pause|zeroes|memory:1M",
        "zeroes:unmap=on|python:server_kit.disks:Ram,size=1M",
    ],
)
def test_the_bytes_are_those_of_an_array(
    text: str,
    server: Serving,
    connect: Connect,
) -> None:
    """Writes and zeroes of every kind leave in the disk what they would in an array."""
    guest = connect(server.add(make(text)))
    model = bytearray(MIB)
    rng = random.Random(text)
    for _ in range(60):
        sector = rng.randrange(SECTORS - 32)
        length = 512 * rng.randint(1, 32)
        at = slice(512 * sector, 512 * sector + length)
        match rng.randrange(4):
            case 0 | 1:
                model[at] = data(rng, length)
                guest.write(sector, bytes(model[at]))
            case 2:
                zeroed = Range(sector, length // 512, flags=rng.choice([0, WRITE_ZEROES_F_UNMAP]))
                assert guest.run(Request.write_zeroes([zeroed])).status == 0
                model[at] = bytes(length)
            case 3:
                assert guest.read(sector, length) == model[at]
    guest.flush()
    assert b"".join(guest.read(start, 65536) for start in range(0, SECTORS, 128)) == model


def test_paused_requests_go_on_behind_resume(
    server: Serving,
    connect: Connect,
) -> None:
    """Writes are held and reads pass; behind `resume` every write is done, and none was lost."""
    disk = Ram()
    guest = connect(server.add(Pause(disk, ops=["write"])))
    server.layer("pause", do="pause")
    tickets = [guest.submit(Request.write(8 * i, bytes([i]) * 4096)) for i in range(8)]
    assert guest.read(0, 32768) == bytes(32768)
    assert until(lambda: held(server) == 8)
    assert not any(ticket.done for ticket in tickets)
    server.layer("pause", do="resume")
    assert all(guest.wait(ticket).status == 0 for ticket in tickets)
    assert guest.read(0, 32768) == b"".join(bytes([i]) * 4096 for i in range(8))
    assert held(server) == 0


def test_changes_and_requests_meet_at_every_moment(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """A layer that is paused and resumed as fast as can be loses no request and does none twice."""
    disk = Ram()
    guest = vhost_user_guest(server.add(Zeroes(Pause(disk)), num_queues=2), queues=2)
    with ThreadPoolExecutor() as pool:
        done = threading.Event()

        def turn() -> int:
            turns = 0
            while not done.is_set():
                server.layer("pause", do="pause")
                server.layer("pause", set={"ops": "read+write"})
                server.layer("pause", do="resume")
                turns += 1
            return turns

        turning = pool.submit(turn)
        for i in range(60):
            writes = [
                guest.submit(Request.write(8 * n, bytes([n, i]) * 2048), queue=n % 2)
                for n in range(8)
            ]
            assert all(guest.wait(ticket).status == 0 for ticket in writes)
        done.set()
        assert turning.result(10)
    assert disk.data[: 8 * 4096] == b"".join(bytes([n, 59]) * 2048 for n in range(8))
    assert sum(call[0] == "write" for call in disk.calls) == 60 * 8


def held(server: Serving) -> Json:
    settings = server.layer("pause")["settings"]
    assert isinstance(settings, Mapping)
    return settings["held"]


def test_a_paused_disk_can_be_stopped(server: Serving, vhost_user_guest: Connect) -> None:
    """Held requests are given up when the drain is over; what was written before is flushed."""
    disk = Ram()
    guest = vhost_user_guest(server.add(Pause(disk), drain_seconds=0.05))
    guest.write(0, X)
    server.layer("pause", do="pause")
    guest.submit(Request.flush())
    assert until(lambda: held(server) == 1)
    guest.close()
    server.stop()
    assert [call[0] for call in disk.calls][-2:] == ["flush", "close"]


def test_zeroes_leave_holes_in_a_file(
    server: Serving,
    connect: Connect,
    tmp_path: Path,
) -> None:
    """What a guest writes of zeroes costs no block of the file, and reads back as such."""
    image = tmp_path / "disk.img"
    image.write_bytes(b"x" * MIB)
    before = image.stat().st_blocks
    guest = connect(server.add(make(f"zeroes:unmap=on|{image}")))
    guest.write(0, bytes(MIB // 2))
    guest.flush()
    assert image.stat().st_blocks <= before // 2 + 16
    assert guest.read(0, MIB) == bytes(MIB // 2) + b"x" * (MIB // 2)
    assert image.read_bytes() == bytes(MIB // 2) + b"x" * (MIB // 2)


def test_a_layer_may_be_of_a_programs_own(server: Serving, vhost_user_guest: Connect) -> None:
    """By composition; the device is called by what it is made of."""

    class Upper(Layer):
        name = "upper"
        commands = ("shout",)

        def settings(self) -> dict[str, str | float]:
            return {"odd": float("nan")}

        async def shout(self) -> dict[str, int]:
            return {"loud": 11}

    guest = vhost_user_guest(server.add(Upper(Zeroes(Ram()))))
    guest.write(0, X)
    assert guest.read(0, 4096) == X
    answer = server.layer("upper", do="shout")
    assert answer == {
        "name": "upper",
        "settings": {"odd": "nan"},
        "commands": ["shout"],
        "result": {"loud": 11},
    }
    assert server.devices[0].backing.name == "upper|zeroes|Ram"
