"""Layers that the C core runs, through real virtqueues of both formats."""

import logging
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_kit.serving import Serving, serving, until

from vhostblk.disk.make import make
from vhostblk.engine.api import OnError
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, Range, Request, StatusError
from vhostblk.server.jsonrpc import Json

Connect = Callable[..., Guest]
MIB = 1 << 20
SECTORS = MIB // 512
X, Y = b"x" * 4096, b"y" * 4096
RAM = "python:server_kit.disks:Ram,size=1M"
IOERR = 1


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core, which these layers are for."""
    with serving("native") as running:
        yield running


def told(server: Serving, layer: str, device: str = "s1") -> dict[str, Json]:
    found = server.run(server.operations.layers(device))
    assert isinstance(found, list)
    (settings,) = [one["settings"] for one in found if one["name"] == layer]
    assert isinstance(settings, dict)
    return settings


@pytest.mark.parametrize(
    "text",
    [
        "delay:all=0..20us|memory:1M",
        "limit:iops=1M,bps=4G,burst=1s|memory:1M",
        "error:ops=flush,state=off|memory:1M",
        "stats|memory:1M",
        "truncate:round-down=4K|memory:1M",
        "stats|delay:read=1us+5us,seed=3|limit|error:state=off|truncate:size=1M|memory:1M",
        "offset:start=64K|truncate:size=1088K|memory:2M",
        f"stats|delay:all=1us..9us|error:state=off|zeroes|limit:bps=1G,burst=1s|stats|{RAM}",
    ],
)
def test_the_bytes_are_those_of_an_array(text: str, server: Serving, connect: Connect) -> None:
    """Layers that fail nothing leave in the disk what would be in an array."""
    guest = connect(server.add(make(text), num_queues=2), queues=2)
    size = guest.config().capacity * 512
    assert size == MIB
    model = bytearray(size)
    rng = random.Random(text)
    for _ in range(60):
        sector, queue = rng.randrange(SECTORS - 32), rng.randrange(2)
        length = 512 * rng.randint(1, 32)
        at = slice(512 * sector, 512 * sector + length)
        match rng.randrange(4):
            case 0 | 1:
                model[at] = rng.randbytes(length)
                guest.write(sector, bytes(model[at]), queue=queue)
            case 2:
                zeroed = Request.write_zeroes([Range(sector, length // 512)])
                assert guest.run(zeroed, queue=queue).status == 0
                model[at] = bytes(length)
            case 3:
                assert guest.read(sector, length, queue=queue) == model[at]
    guest.flush()
    assert b"".join(guest.read(start, 65536) for start in range(0, SECTORS, 128)) == model


# ---- delay ---------------------------------------------------------------------------------


def test_delayed_requests_are_never_early(server: Serving, connect: Connect) -> None:
    """Reads wait as long as they are to, writes do not; a change counts from the next one on."""
    guest = connect(server.add(make("delay:read=20ms|memory:1M")))
    guest.write(0, X)
    start = time.monotonic()
    assert guest.read(0, 4096) == X
    assert time.monotonic() - start >= 0.02
    assert told(server, "delay")["delayed"] == 1
    server.layer("delay", set={"read": "0", "write": "10ms..11ms"})
    guest.read(0, 4096)
    start = time.monotonic()
    guest.write(0, Y)
    assert time.monotonic() - start >= 0.01
    assert told(server, "delay")["delayed"] == 2


def test_many_requests_wait_together(server: Serving, connect: Connect) -> None:
    """Each waits for itself: sixteen take as long as one."""
    guest = connect(server.add(make("delay:all=30ms|memory:1M")))
    start = time.monotonic()
    tickets = [guest.submit(Request.write(8 * i, bytes([i]) * 4096)) for i in range(16)]
    assert [guest.wait(ticket).status for ticket in tickets] == [0] * 16
    assert 0.03 <= time.monotonic() - start < 0.3
    server.layer("delay", set={"all": "0"})
    for i in range(16):
        assert guest.read(8 * i, 4096) == bytes([i]) * 4096


def test_a_guest_that_stops_waits_for_no_delay(server: Serving, connect: Connect) -> None:
    """What is held when time is up ends with an error, and nothing of it is done."""
    path = server.add(make("delay:write=1m|memory:1M"), drain_seconds=0.05)
    guest = connect(path)
    guest.submit(Request.write(0, X))
    assert until(lambda: told(server, "delay")["delayed"] == 1)
    guest.stop()
    guest.close()
    server.layer("delay", set={"write": "0"})
    assert connect(path).read(0, 4096) == bytes(4096)


# ---- error ---------------------------------------------------------------------------------


def test_errors_by_kind_place_and_count(server: Serving, connect: Connect) -> None:
    """Two writes that touch the range fail, behind one that passes; nothing else does."""
    guest = connect(server.add(make("error:ops=write,range=64K-128K,after=1,count=2|memory:1M")))
    guest.write(128, X)
    statuses = [guest.run(Request.write(at, Y)).status for at in (0, 127, 256, 128, 255)]
    assert statuses == [0, IOERR, 0, IOERR, 0]
    assert guest.read(128, 4096) == X
    assert guest.read(255, 4096) == Y
    assert told(server, "error")["injected"] == 2
    server.layer("error", set={"count": "1", "after": "0"})
    assert guest.run(Request.write(128, Y)).status == IOERR
    guest.write(128, Y)


def test_the_same_seed_fails_the_same(server: Serving, connect: Connect) -> None:
    """One in four or so; the same ones behind a reset, others with another seed."""
    guest = connect(server.add(make("error:ops=read,rate=25%,seed=7|memory:1M")))

    def statuses() -> list[int]:
        return [guest.run(Request.read(0, 512)).status for _ in range(64)]

    first = statuses()
    assert 4 <= sum(first) <= 32
    server.layer("error", set={"seed": "7"})
    assert statuses() == first
    server.layer("error", set={"seed": "8"})
    assert statuses() != first


def test_errors_are_switched_by_command_and_by_file(
    server: Serving, connect: Connect, tmp_path: Path
) -> None:
    """Off until the file is there, off again when it is not; on by command whatever the file."""
    switch = tmp_path / "fail"
    guest = connect(server.add(make(f"error:file={switch}|memory:1M")))
    guest.write(0, X)
    switch.touch()
    assert until(lambda: guest.run(Request.read(0, 512)).status == IOERR)
    switch.unlink()
    assert until(lambda: guest.run(Request.read(0, 512)).status == 0)
    server.layer("error", do="on")
    with pytest.raises(StatusError):
        guest.flush()
    server.layer("error", do="off")
    guest.flush()


def test_an_operator_helps_a_disk_that_is_full(server: Serving, connect: Connect) -> None:
    """With on-error=enospc a request waits until the error is off and the device is resumed."""
    disk = make("error:ops=write,errno=ENOSPC|memory:1M")
    guest = connect(server.add(disk, on_error=OnError.ENOSPC))
    ticket = guest.submit(Request.write(0, X))
    assert until(lambda: told(server, "error")["injected"] == 1)
    server.layer("error", do="off")
    server.run(server.operations.resume("s1"))
    assert guest.wait(ticket).status == 0
    assert guest.read(0, 4096) == X


# ---- limit ---------------------------------------------------------------------------------


def test_requests_of_all_queues_share_a_limit(server: Serving, connect: Connect) -> None:
    """Twelve requests of two queues at 100 a second, of which one is saved up, take 110 ms."""
    guest = connect(server.add(make("limit:iops=100,burst=10ms|memory:1M"), num_queues=2), queues=2)
    start = time.monotonic()
    tickets = [guest.submit(Request.write(8 * i, X), queue=i % 2) for i in range(12)]
    assert [guest.wait(ticket).status for ticket in tickets] == [0] * 12
    assert time.monotonic() - start >= 0.1
    assert told(server, "limit")["waited"] in {10, 11}


def test_a_limit_of_bytes_lets_a_large_request_pass(server: Serving, connect: Connect) -> None:
    """It goes at once, though it is more than is saved up; the next one pays for it."""
    guest = connect(server.add(make("limit:write-bps=4M,burst=10ms|memory:1M")))
    start = time.monotonic()
    guest.write(0, X * 64)
    guest.write(0, X)
    assert time.monotonic() - start >= 0.05
    assert told(server, "limit")["waited"] == 1
    assert guest.read(0, 8192) == X * 2


def test_a_limit_that_goes_lets_go_what_waits(server: Serving, connect: Connect) -> None:
    """Nobody waits for a limit that there is no more; flushes never did."""
    guest = connect(server.add(make("limit:iops=1,burst=0|memory:1M")))
    tickets = [guest.submit(Request.write(8 * i, X)) for i in range(8)]
    assert until(lambda: told(server, "limit")["waited"] == 7)
    guest.flush()
    server.layer("limit", set={"iops": "0"})
    assert [guest.wait(ticket).status for ticket in tickets] == [0] * 8


# ---- stats ---------------------------------------------------------------------------------


def test_stats_count_at_their_place(server: Serving, connect: Connect, tmp_path: Path) -> None:
    """In front of a layer that delays and fails, and behind it; `reset` counts anew."""
    text = tmp_path / "stats.txt"
    stack = f"stats:file={text}|delay:read=5ms|error:ops=write|memory:1M"
    guest = connect(server.add(make(stack)))
    guest.read(0, 4096)
    guest.read(0, 8192)
    assert guest.run(Request.write(0, X)).status == IOERR
    seen = told(server, "stats")
    assert (seen["read requests"], seen["read bytes"], seen["read errors"]) == (2, 12288, 0)
    assert (seen["write requests"], seen["write errors"]) == (1, 1)
    assert isinstance(mean := seen["read mean_us"], float)
    assert mean >= 5000
    server.layer("stats", do="reset")
    guest.flush()
    assert set(told(server, "stats")) == {"file"} | {
        f"flush {name}" for name in ("requests", "bytes", "errors", "mean_us", "p50_us", "p99_us")
    }
    guest.close()
    server.stop()
    assert "flush requests: " in text.read_text()


def test_a_file_of_stats_that_cannot_be_written(
    server: Serving, connect: Connect, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong name is refused at the start; a disk that is full at the end is said in a line."""
    with pytest.raises(VhostBlkError, match="nowhere/x: No such file or directory"):
        server.add(make(f"stats:file={tmp_path}/nowhere/x|memory:1M"))
    connect(server.add(make("stats:file=/dev/full|memory:1M"))).close()
    server.stop()
    (said,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert said.getMessage().startswith("stats: /dev/full: No space left on device: ")


# ---- partition ---------------------------------------------------------------------------------


def test_a_partition_by_its_number(server: Serving, connect: Connect, tmp_path: Path) -> None:
    """What is written is in the partition that sfdisk has made, through layers below as well."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(
        ["/sbin/sfdisk", "--quiet", image],
        input="label: gpt\nstart=2048, size=2048\nstart=6144, size=4096\n",
        text=True,
        check=True,
    )
    before = image.read_bytes()
    guest = connect(server.add(make(f"partition:number=2|stats|file:{image}")))
    assert guest.config().capacity == 4096
    guest.write(4088, X)
    with pytest.raises(StatusError):
        guest.write(4096, X[:512])
    guest.flush()
    at = (6144 + 4088) * 512
    assert image.read_bytes() == before[:at] + X + before[at + 4096 :]
