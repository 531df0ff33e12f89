"""The disks in docs/examples, through real virtqueues, against an array of bytes."""

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from server_kit.serving import Serving, serving

from vhostblk.disk.call import Calls
from vhostblk.disk.make import make
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, Range, Request, StatusError
from vhostblk.guest.pytest_plugin import vhost_user_guest

__all__ = ["vhost_user_guest"]

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
Connect = Callable[..., Guest]
MIB = 1 << 20
BLOCK = 4096
X, Y = b"x" * BLOCK, b"y" * BLOCK


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the examples where Python finds them."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core."""
    with serving("native") as running:
        yield running


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def connect(request: pytest.FixtureRequest, vhost_user_guest: Connect) -> Connect:
    """Connect a guest with rings of one format, then of the other."""
    return partial(vhost_user_guest, packed=request.param)


def disks(directory: Path) -> dict[str, str]:
    return {
        "ram": f"python:ram:Ram,size={MIB}",
        "dedup": f"python:dedup:Dedup,path={directory}/store.db,size={MIB}",
        "time_travel": f"python:time_travel:Versions,path={directory}/disk.log,size={MIB}",
    }


@pytest.mark.parametrize("name", ["ram", "dedup", "time_travel"])
def test_the_bytes_are_those_of_an_array(
    name: str, server: Serving, connect: Connect, tmp_path: Path
) -> None:
    """Writes, zeroes, discards and flushes of every place and length leave what they should."""
    guest = connect(server.add(make(disks(tmp_path)[name])))
    model = bytearray(MIB)
    rng = random.Random(name)
    blocks = MIB // BLOCK
    for _ in range(60):
        first = rng.randrange(blocks - 8)
        length = BLOCK * rng.randint(1, 8)
        at = slice(first * BLOCK, first * BLOCK + length)
        match rng.randrange(5):
            case 0 | 1:
                model[at] = rng.choice([rng.randbytes(length), bytes([first % 5]) * length])
                guest.write(first * 8, bytes(model[at]))
            case 2:
                zeroes = Request.write_zeroes([Range(first * 8, length // 512)])
                assert guest.run(zeroes).status == 0
                model[at] = bytes(length)
            case 3:
                assert guest.read(first * 8, length) == model[at]
            case 4:
                guest.flush()
    assert b"".join(guest.read(at, 65536) for at in range(0, MIB // 512, 128)) == model


@pytest.mark.parametrize("name", ["dedup", "time_travel"])
def test_what_was_written_is_there_when_it_is_served_again(
    name: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """The disk is closed and opened; what it holds is in its file."""
    text = disks(tmp_path)[name]
    for n in range(2):
        guest = vhost_user_guest(server.add(make(text), name=f"d{n}"))
        if n == 0:
            guest.write(8, X)
            guest.write(800, X + Y)
        else:
            assert guest.read(0, 3 * BLOCK) == bytes(BLOCK) + X + bytes(BLOCK)
            assert guest.read(800, 2 * BLOCK) == X + Y
        guest.close()
        server.run(server.operations.remove(f"d{n}", force=True))


def test_equal_blocks_are_stored_once(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """A hundred copies of a block of noise take about the room of one."""
    guest = vhost_user_guest(server.add(make(disks(tmp_path)["dedup"])))
    noise = random.Random(1).randbytes(BLOCK)
    guest.write(0, noise * 100)
    guest.flush()
    assert (tmp_path / "store.db").stat().st_size < 20 * BLOCK
    with pytest.raises(StatusError):
        guest.write(0, noise[:512])


def test_a_store_of_another_size_is_refused(server: Serving, tmp_path: Path) -> None:
    """The line says which size it has."""
    text = disks(tmp_path)["dedup"]
    server.add(make(text), name="d1")
    server.run(server.operations.remove("d1", force=True))
    with pytest.raises(VhostBlkError, match=f"say size={MIB}"):
        server.add(make(text.replace(f"size={MIB}", "size=2M")), name="d2")


def test_the_past_is_served_as_it_was(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Each flush is a version; one of them is opened, read-only, while the newest is served."""
    text = disks(tmp_path)["time_travel"]
    guest = vhost_user_guest(server.add(make(text)))
    for block in (X, Y, X + Y):
        guest.write(0, block)
        guest.flush()
    for version, seen in ((1, X + bytes(BLOCK)), (2, Y + bytes(BLOCK)), (3, X + Y)):
        then = vhost_user_guest(server.add(make(f"{text},at={version}"), name=f"v{version}"))
        assert then.read(0, 2 * BLOCK) == seen
        assert then.run(Request.write(0, X)).status != 0
    with pytest.raises(VhostBlkError, match="has versions 1 to 3"):
        server.add(make(f"{text},at=9"), name="v9")


def test_what_was_not_flushed_goes_with_a_crash(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """A log that ends behind a version, in the middle of a block, is opened as that version."""
    text = disks(tmp_path)["time_travel"]
    guest = vhost_user_guest(server.add(make(text), name="d1"))
    guest.write(0, X)
    guest.flush()
    guest.close()
    server.run(server.operations.remove("d1", force=True))
    log = tmp_path / "disk.log"
    with log.open("ab") as file:
        file.write(log.read_bytes()[:100])
    assert vhost_user_guest(server.add(make(text), name="d2")).read(0, BLOCK) == X


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [("time_travel", "disk.log", "is no log"), ("dedup", "store.db", "file is not a database")],
)
def test_a_file_of_something_else_is_left_alone(
    kind: str, name: str, why: str, server: Serving, tmp_path: Path
) -> None:
    """A wrong name must not cost an image."""
    path = tmp_path / name
    text = disks(tmp_path)[kind]
    assert str(path) in text
    path.write_bytes(X)
    with pytest.raises(VhostBlkError, match=f"{path}.* {why}"):
        server.add(make(text))
    assert path.read_bytes() == X


def test_two_that_append_to_one_log_are_one_too_many(server: Serving, tmp_path: Path) -> None:
    """The second is told that an older version can be looked at; nothing is lost."""
    text = disks(tmp_path)["time_travel"]
    server.add(make(text), name="d1")
    with pytest.raises(VhostBlkError, match="is served already"):
        server.add(make(text), name="d2")


def test_versions_are_counted_without_gaps(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flush that found no room for its mark is none; the next one has its number."""
    text = disks(tmp_path)["time_travel"]
    guest = vhost_user_guest(server.add(make(text)))
    guest.write(0, X)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", no_room)
        with pytest.raises(StatusError):
            guest.flush()
    guest.flush()
    then = vhost_user_guest(server.add(make(f"{text},at=1"), name="v1"))
    assert then.read(0, BLOCK) == X


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, "no room")


def test_a_store_without_room_loses_nothing_in_silence(tmp_path: Path) -> None:
    """SQLite undoes what was not flushed: from then on all fails, and what was flushed is there."""
    text = disks(tmp_path)["dedup"]
    disk = make(text)
    calls = Calls(disk)
    calls.open()
    calls.write(0, [memoryview(X)])
    calls.flush()
    calls.write(BLOCK, [memoryview(Y)])
    disk.store.execute("PRAGMA max_page_count = 10")  # type: ignore[attr-defined]
    noise = random.Random(3).randbytes(60 * BLOCK)
    with pytest.raises(OSError, match="full"):
        calls.write(2 * BLOCK, [memoryview(noise)])
    into = bytearray(BLOCK)
    with pytest.raises(OSError, match="not flushed is lost"):
        calls.read(BLOCK, [memoryview(into)])
    with pytest.raises(OSError, match="not flushed is lost"):
        calls.write(0, [memoryview(X)])
    with pytest.raises(OSError, match="not flushed is lost"):
        calls.flush()
    calls.close()
    calls = Calls(make(text))
    calls.open()
    calls.read(0, [memoryview(into)])
    calls.close()
    assert into == X


# ---- over HTTP ----------------------------------------------------------------------------------


class Ranges(BaseHTTPRequestHandler):
    """A web server that knows ranges, and hangs up when it is told to."""

    protocol_version = "HTTP/1.1"
    data = random.Random(2).randbytes(MIB)
    hang_up = False
    status = 206
    chunked = False  # as proxies send the page that says what is wrong
    shift = 0  # what else is given than was asked for

    def do_GET(self) -> None:
        if type(self).hang_up:
            type(self).hang_up = False
            self.close_connection = True
            return
        asked = self.headers["Range"].removeprefix("bytes=").split("-")
        first, last = (int(one) + type(self).shift for one in asked)
        body = self.data[first : last + 1] if type(self).status == 206 else b""
        self.send_response(type(self).status)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.data)}")
        if type(self).chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"5\r\nbusy\n\r\n0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    """Run a web server."""
    Ranges.hang_up, Ranges.status, Ranges.chunked, Ranges.shift = False, 206, False, 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Ranges) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/disk.img"
        finally:
            server.shutdown()
            thread.join()


def test_a_file_on_a_web_server(web: str, server: Serving, connect: Connect) -> None:
    """Ranges of it, several at once; it cannot be written."""
    guest = connect(server.add(make(f"python:http_range:Web,url={web}")))
    tickets = [guest.submit(Request.read(64 * n, 32768)) for n in range(16)]
    for n, ticket in enumerate(tickets):
        assert guest.wait(ticket).data == Ranges.data[32768 * n : 32768 * (n + 1)]
    assert guest.run(Request.write(0, X)).status != 0


def test_a_web_server_that_hangs_up_is_called_again(
    web: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """A connection that was closed costs nobody a request; an error status is an I/O error."""
    guest = vhost_user_guest(server.add(make(f"python:http_range:Web,url={web}")))
    Ranges.hang_up = True
    assert guest.read(8, 4096) == Ranges.data[4096:8192]
    Ranges.status = 503
    with pytest.raises(StatusError):
        guest.read(8, 4096)
    Ranges.status = 206
    assert guest.read(8, 4096) == Ranges.data[4096:8192]


def test_the_rest_of_an_answer_is_no_answer_to_the_next_request(
    web: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """An error in chunks costs one request; those behind it get their own bytes."""
    guest = vhost_user_guest(server.add(make(f"python:http_range:Web,url={web}")))
    Ranges.status, Ranges.chunked = 503, True
    with pytest.raises(StatusError):
        guest.read(0, 4096)
    Ranges.status, Ranges.chunked = 206, False
    for n in range(1, 6):
        assert guest.read(128 * n, 4096) == Ranges.data[65536 * n : 65536 * n + 4096]


def test_a_range_that_was_not_asked_for_is_an_error(
    web: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """The right number of other bytes never becomes the guest's."""
    guest = vhost_user_guest(server.add(make(f"python:http_range:Web,url={web}")))
    Ranges.shift = 4096
    with pytest.raises(StatusError):
        guest.read(0, 4096)


def test_a_web_server_without_ranges_is_refused(web: str, server: Serving) -> None:
    """It is said when the disk is opened, before whole files are fetched for each request."""
    Ranges.status = 200
    with pytest.raises(VhostBlkError, match=r"gave no range, but 'HTTP/1\.1 200 OK'"):
        server.add(make(f"python:http_range:Web,url={web}"))


def test_a_web_server_that_is_not_there(server: Serving) -> None:
    """It is said when the disk is opened."""
    with pytest.raises(VhostBlkError, match=r"127\.0\.0\.1:1"):
        server.add(make("python:http_range:Web,url=http://127.0.0.1:1/x"))
