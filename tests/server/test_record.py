"""Requests of real virtqueues, recorded and told of by the C core."""

import itertools
import logging
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_kit.serving import Serving, serving, until

from vhostblk.disk.make import make
from vhostblk.guest import Guest, Request
from vhostblk.trace.format import Op, Payload
from vhostblk.trace.reader import Request as Recorded
from vhostblk.trace.reader import Trace, read

Connect = Callable[..., Guest]
MIB = 1 << 20
X, Y = b"x" * 4096, b"y" * 1024
DISKS = ["memory:1M", "python:server_kit.disks:Ram,size=1M", "zeroes|memory:1M"]


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core, which these layers are for."""
    with serving("native") as running:
        yield running


def requests(trace: Trace, segment: int = -1) -> list[Recorded]:
    return sorted(trace.segments[segment].requests(), key=lambda one: one.submitted.seq)


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("payload", list(Payload))
def test_a_recording_has_every_request(
    disk: str, payload: Payload, server: Serving, connect: Connect, tmp_path: Path
) -> None:
    """What was asked, where, on which queue, how it ended; and of the bytes what was said."""
    path = tmp_path / "trace"
    stack = make(f"record:path={path},payload={payload}|{disk}")
    guest = connect(server.add(stack, num_queues=2), queues=2)
    guest.write(8, X)
    guest.write(0, Y, queue=1)
    assert guest.read(8, 4096, queue=1) == X
    assert guest.run(Request.read(2048, 512)).status != 0
    guest.flush()
    guest.close()
    server.stop()
    trace = read(path)
    assert (trace.damage, trace.segments[0].ended, trace.segments[0].lost) == (None, True, 0)
    assert trace.segments[0].header.size == MIB
    found = [one for one in requests(trace) if one.submitted.op is not Op.FLUSH]
    asked = [
        (r.submitted.op, r.submitted.offset, r.submitted.length, r.submitted.queue) for r in found
    ]
    assert asked == [(Op.WRITE, 4096, 4096, 0), (Op.WRITE, 0, 1024, 1), (Op.READ, 4096, 4096, 1)]
    assert all(one.completed is not None and one.completed.error == 0 for one in found)
    full = payload is Payload.FULL
    assert [one.submitted.payload for one in found] == ([X, Y, None] if full else [None] * 3)
    if payload is Payload.DIGEST:
        assert [one.submitted.digest for one in found] == [zlib.crc32(X), zlib.crc32(Y), None]
    if payload is not Payload.NONE:
        assert found[2].completed is not None
        assert found[2].completed.digest == zlib.crc32(X)
    assert any(one.submitted.op is Op.FLUSH for one in requests(trace))


def test_a_recording_is_written_while_it_goes_on(
    server: Serving, connect: Connect, tmp_path: Path
) -> None:
    """What is over is in the file a moment later; the next server appends a segment."""
    path = tmp_path / "trace"
    for n in (1, 2):
        guest = connect(server.add(make(f"record:path={path}|memory:1M"), name=f"d{n}"))
        guest.write(8, X)
        assert until(lambda: len(requests(read(path))) >= 1)
        assert not read(path).segments[-1].ended
        guest.close()
        server.run(server.operations.remove(f"d{n}", force=True))
        assert read(path).segments[-1].ended
    assert len(read(path).segments) == 2


def test_order_across_queues_is_what_the_guest_can_know(
    server: Serving, connect: Connect, tmp_path: Path
) -> None:
    """A request that was over before another was made has its end in front of that, always."""
    path = tmp_path / "trace"
    guest = connect(server.add(make(f"record:path={path}|memory:1M"), num_queues=4), queues=4)
    for n in range(64):
        guest.write(8 * n, X, queue=n % 4)
    guest.close()
    server.stop()
    found = [one for one in requests(read(path)) if one.submitted.op is Op.WRITE]
    assert [one.submitted.offset for one in found] == [4096 * n for n in range(64)]
    for before, after in itertools.pairwise(found):
        assert before.completed is not None
        assert before.completed.seq < after.submitted.seq


def test_what_is_no_trace_is_not_written_to(server: Serving, tmp_path: Path) -> None:
    """A file of somebody's stays what it is."""
    path = tmp_path / "letter"
    path.write_text("dear")
    with pytest.raises(Exception, match="is no trace"):
        server.add(make(f"record:path={path}|memory:1M"))
    assert path.read_text() == "dear"


def test_a_log_has_a_line_for_each_request(
    server: Serving, connect: Connect, tmp_path: Path
) -> None:
    """In a file: when, on which queue, what, how it ended and how long it took; none while off."""
    path = tmp_path / "log"
    guest = connect(server.add(make(f"log:file={path}|error:ops=read|memory:1M")))
    guest.write(8, X)
    guest.run(Request.read(8, 512))
    assert until(lambda: path.read_text().count("\n") == 2)
    server.layer("log", do="off")
    guest.write(16, X)
    server.layer("log", set={"state": "on"})
    guest.flush()
    assert until(lambda: path.read_text().count("\n") == 3)
    wrote, got, flushed = path.read_text().splitlines()
    assert " q0 write 4096+4096: ok in " in wrote
    assert " q0 read 4096+512: EIO in " in got
    assert " q0 flush: ok in " in flushed


def test_a_log_without_a_file_is_the_server_s(
    server: Serving, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A line of level INFO each."""
    caplog.set_level(logging.INFO)
    guest = connect(server.add(make("log|memory:1M")))
    guest.write(8, X)
    assert until(lambda: " q0 write 4096+4096: ok in " in caplog.text)


def test_a_log_whose_file_is_full_goes_on_in_the_server_s(
    server: Serving, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """No line is lost, the first that found no room among them; said once, and closed in order."""
    caplog.set_level(logging.INFO)
    guest = connect(server.add(make("log:file=/dev/full|memory:1M")))
    for sector in range(3):
        guest.write(sector, bytes(512))
    assert until(lambda: caplog.text.count(" q0 write ") == 3)
    guest.close()
    server.stop()
    assert caplog.text.count("No space left on device; its lines go on here") == 1
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


@pytest.mark.slow
def test_a_server_that_is_killed_leaves_what_was_under_way(
    vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """What was over is there, what was not has no end, and the segment says that it has none."""
    path, socket = tmp_path / "trace", tmp_path / "s"
    command = [sys.executable, "-m", "vhostblk", "serve", "--quiet"]
    command += ["--socket-path", str(socket), "--record", str(path), "delay:read=60s|memory:1M"]
    with subprocess.Popen(command) as process:
        assert until(socket.exists)
        guest = vhost_user_guest(socket)
        guest.write(8, X)
        guest.submit(Request.read(8, 512))
        assert until(lambda: len(requests(read(path))) == 2)
        process.kill()
    segment = read(path).segments[0]
    wrote, got = requests(read(path))
    assert not segment.ended
    assert wrote.completed is not None
    assert (got.submitted.op, got.submitted.offset, got.completed) == (Op.READ, 4096, None)
