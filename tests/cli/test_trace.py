"""``vhostblk trace`` as a person uses it."""

import json
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_peers.qsd import storage_daemon
from server_kit.serving import Serving, serving

from vhostblk.cli import main
from vhostblk.disk.memory import Memory
from vhostblk.disk.null import Null
from vhostblk.trace.format import Header, Op, Payload
from vhostblk.trace.writer import Writer

MIB = 1 << 20
X, Y = b"x" * 4096, b"y" * 4096


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server, with whichever data plane is installed."""
    with serving("auto") as running:
        yield running


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Make a recording: two writes that overlap in time, a flush, a read, and one that failed."""
    path = tmp_path / "t.trace"
    header = Header(size=MIB, payload=Payload.FULL, started=1_700_000_000 * 10**9, clock=0)
    with path.open("wb") as file, Writer(file, header) as writer:
        first = writer.submit(Op.WRITE, offset=0, length=4096, payload=X, time=1_000_000)
        second = writer.submit(
            Op.WRITE, offset=4096, length=4096, payload=Y, queue=1, time=1_500_000
        )
        writer.complete(second, time=2_000_000)
        writer.complete(first, time=3_000_000)
        flush = writer.submit(Op.FLUSH, time=3_000_000)
        writer.complete(flush, time=4_000_000)
        read = writer.submit(Op.READ, offset=4096, length=4096, queue=1, time=5_000_000)
        writer.complete(read, time=5_010_000, digest=zlib.crc32(Y))
        bad = writer.submit(Op.READ, offset=MIB - 512, length=512, time=6_000_000)
        writer.complete(bad, time=6_100_000, error=5)
        writer.submit(Op.WRITE_ZEROES, offset=8192, length=4096, unmap=True, time=7_000_000)
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 0) -> str:
    """Run a command, and return what it has printed."""
    assert main.main(["trace", *map(str, words)]) == status
    return capsys.readouterr().out


def test_show_adds_up(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    """Requests by kind, with errors, times, and what is not over."""
    text = said(capsys, "show", recording)
    assert "session 1: 2023-11-14T22:13:20" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:]}
    assert rows["write"] == ["2", "8192", "0", "2ms", "2ms", "2ms"]
    assert rows["read"] == ["2", "4608", "1", "100us", "100us", "100us"]
    assert rows["write-zeroes"] == ["1", "4096", "0", "-", "-", "-", "1", "not", "over"]


def test_show_lists_what_is_asked_for(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    """By kind, queue, error and time; as lines or as JSON."""
    text = said(capsys, "show", recording, "--requests", "--queue", "1")
    assert [line.split(" ", 1)[1] for line in text.splitlines()] == [
        "q1 write 4096+4096: ok in 500us",
        "q1 read 4096+4096: ok in 10us",
    ]
    assert " q0 read 1048064+512: EIO in 100us" in said(
        capsys, "show", recording, "--requests", "--errors", "--op", "read"
    )
    assert said(capsys, "show", recording, "--requests", "--slow", "2ms").count("\n") == 1
    text = said(capsys, "show", recording, "--requests", "--json", "--op", "write-zeroes")
    assert json.loads(text)["unmap"] is True
    assert json.loads(text)["error"] is None
    assert json.loads(said(capsys, "show", recording, "--json"))["queues"] == 2


def test_export_to_fio(capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path) -> None:
    """An iolog of version 3, times in microseconds."""
    out = tmp_path / "iolog"
    said(capsys, "export", recording, "--to", "fio", "--name", "/dev/x", "-o", out)
    assert out.read_text().splitlines() == [
        "fio version 3 iolog",
        "0 /dev/x add",
        "0 /dev/x open",
        "1000 /dev/x write 0 4096",
        "1500 /dev/x write 4096 4096",
        "3000 /dev/x sync 0 0",
        "5000 /dev/x read 4096 4096",
        "6000 /dev/x read 1048064 512",
        "7000 /dev/x trim 8192 4096",
        "7000 /dev/x close",
    ]


@pytest.mark.slow
def test_fio_replays_an_export(
    capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path
) -> None:
    """Fio itself does what it reads there: as many reads and writes, to those places."""
    image, out = tmp_path / "image", tmp_path / "iolog"
    image.write_bytes(bytes(MIB))
    said(capsys, "export", recording, "--to", "fio", "--name", str(image), "-o", out)
    command = ["fio", "--name=replay", f"--read_iolog={out}", "--output-format=json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    job = json.loads(done.stdout)["jobs"][0]
    assert (job["read"]["total_ios"], job["write"]["total_ios"]) == (2, 2)
    assert image.read_bytes()[:8192].count(0) < 8192


def test_export_to_blktrace(capsys: pytest.CaptureFixture[str], recording: Path) -> None:
    """As blkparse prints it: where requests are issued and where they are over."""
    lines = said(capsys, "export", recording, "--to", "blktrace").splitlines()
    assert lines[0] == "    0,0  0        1     0.001000000     0  D   W 0 + 8 [vhostblk]"
    assert lines[2] == "    0,0  1        3     0.002000000     0  C   W 8 + 8 [0]"
    assert lines[-2] == "    0,0  0       10     0.006100000     0  C   R 2047 + 1 [5]"
    assert lines[-1].split()[5:7] == ["D", "WZ"]


def test_replay_writes_what_was_written(
    capsys: pytest.CaptureFixture[str], recording: Path, server: Serving
) -> None:
    """On a socket: the bytes are there; what failed then may go well now; reads are compared."""
    disk = Memory(MIB)
    path = server.add(disk, num_queues=2)
    text = said(capsys, "replay", recording, "--socket-path", path)
    assert "6 requests in " in text
    assert "0 failed that had not then\n1 reads compared, 0 differ\n" in text
    back = bytearray(12288)
    disk.read(0, [memoryview(back)])
    assert bytes(back) == X + Y + bytes(4096)


def test_replay_tells_what_differs(
    capsys: pytest.CaptureFixture[str], recording: Path, server: Serving
) -> None:
    """A disk that brings something else gives exit status 1."""
    path = server.add(Null(MIB))
    assert "1 differ" in said(capsys, "replay", recording, "--socket-path", path, status=1)


def test_replay_at_the_times_of_then(
    capsys: pytest.CaptureFixture[str], recording: Path, server: Serving
) -> None:
    """Six milliseconds from the first to the last request take as long again."""
    text = said(
        capsys, "replay", recording, "--socket-path", server.add(Memory(MIB)), "--speed", "1"
    )
    assert float(text.split(" requests in ")[1].split(" s")[0]) >= 0.006
    assert " were late" in text


def test_replay_on_a_disk_of_its_own(
    capfd: pytest.CaptureFixture[str], recording: Path, tmp_path: Path
) -> None:
    """It is served for the replay, layers and all, and closed behind it."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    assert main.main(["trace", "replay", str(recording), "--disk", f"zeroes|file:{image}"]) == 0
    assert image.read_bytes() == X + Y + bytes(MIB - 8192)
    assert "6 requests in " in capfd.readouterr().out


def test_plot_draws_png_and_svg(
    capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path
) -> None:
    """Three charts in one picture."""
    png, svg = tmp_path / "x.png", tmp_path / "x.svg"
    assert "6 requests" in said(capsys, "plot", recording, png)
    assert png.read_bytes().startswith(b"\x89PNG")
    said(capsys, "plot", recording, svg)
    assert "latency" in svg.read_text() or svg.read_text().count("<path") > 3


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("plot", "T", "x.gif"), "write a name that ends in .png or .svg"),
        (("show", "T", "--segment", "2"), "has 1 sessions, not 2"),
        (("export", "T", "--to", "fio", "--name", "a b"), "has no blanks in names"),
        (("replay", "T", "--socket-path", "/nowhere"), "/nowhere"),
        (
            ("replay", "T", "--disk", "null:512"),
            "the disk has 512 bytes, and the recording goes to",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], recording: Path, words: tuple[str, ...], why: str
) -> None:
    """The line says what to do."""
    words = tuple(str(recording) if word == "T" else word for word in words)
    assert main.main(["trace", *words]) == 1
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("words", [("export", "--to", "fio", "-o"), ("plot",)], ids=lambda w: w[0])
def test_a_recording_is_not_written_over(
    capsys: pytest.CaptureFixture[str], recording: Path, words: tuple[str, ...]
) -> None:
    """A wrong name, be it another one of the same file, must not cost a recording."""
    before = recording.read_bytes()
    other = recording.with_suffix(".svg")
    other.hardlink_to(recording)
    command, *rest = words
    assert main.main(["trace", command, str(recording), *rest, str(other)]) == 2
    assert "is what it is made of: name another file" in capsys.readouterr().err
    assert recording.read_bytes() == before


@pytest.mark.parametrize(
    "words", [("export", "--to", "fio"), ("replay", "--disk", "null:1M"), ("show",)]
)
def test_a_recording_that_was_cut_short_is_used_as_far_as_it_is_whole(
    capsys: pytest.CaptureFixture[str], recording: Path, words: tuple[str, ...]
) -> None:
    """And that it is short is said."""
    with recording.open("ab") as file:
        file.write(b"torn")
    command, *rest = words
    main.main(["trace", command, str(recording), *rest])
    said = capsys.readouterr()
    assert "the last block was not written to its end" in said.err
    assert said.out


@pytest.mark.slow
def test_replay_on_somebody_else_s_back_end(
    capsys: pytest.CaptureFixture[str], recording: Path, tmp_path: Path
) -> None:
    """qemu-storage-daemon does what was recorded, and its image has the bytes."""
    with storage_daemon(tmp_path, MIB) as daemon:
        text = said(capsys, "replay", recording, "--socket-path", daemon.path)
    assert "6 requests in " in text
    assert "0 failed that had not then\n1 reads compared, 0 differ\n" in text
    assert daemon.image.read_bytes() == X + Y + bytes(MIB - 8192)
