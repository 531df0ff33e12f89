import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from server_kit.disks import Ram
from server_kit.serving import Serving, serving

from vhostblk.cli import bench_shown, main
from vhostblk.guest.histogram import BUCKETS, Histogram
from vhostblk.guest.load import Load, Plan
from vhostblk.guest.load_report import Kind, Progress, Report

NOWHERE = "/nowhere/sock"


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server in Python; a test that asks for it is skipped without the load generator."""
    pytest.importorskip("vhostblk.guest._driver", reason="no load generator", exc_type=ImportError)
    with serving("reference") as running:
        yield running


def words(path: Path, *more: str) -> list[str]:
    return ["bench", str(path), "--depth", "2", "--requests", "20", *more]


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        (["--op", "write"], "--op write"),
        (["--op", "rw", "--verify"], "--op rw"),
        (["--verify"], "--verify"),
    ],
)
def test_writing_wants_consent(
    capsys: pytest.CaptureFixture[str], asked: list[str], what: str
) -> None:
    """Nobody is connected to before; the line says what to add."""
    assert main.main(["bench", NOWHERE, *asked]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"vhostblk bench: {what} overwrites what is on the disk: add --destroy-data if that may "
        "be lost. See 'vhostblk bench --help'.\n"
    )


def test_without_the_compiled_part_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, as from the pure-Python wheel."""
    for name in ("load_run", "generator"):
        monkeypatch.delitem(sys.modules, f"vhostblk.guest.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "vhostblk.guest._driver", None)
    assert main.main(["bench", NOWHERE]) == 1
    said = capsys.readouterr().err
    assert said.startswith("vhostblk: this installation has no compiled load generator (")
    assert said.count("\n") == 1


@pytest.mark.usefixtures("server")
def test_a_socket_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """The path and the reason, in one line."""
    assert main.main(["bench", NOWHERE]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"vhostblk: cannot connect to {NOWHERE}: ")
    assert said.count("\n") == 1


def test_a_load_is_told_as_a_table(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    """What was done, a line of latencies, CPU time, counts; nothing else, and no progress."""
    assert main.main(words(server.add(Ram()))) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == (
        "read 4K at random in 1M, depth 2, 1 queue (split, INDIRECT), the client sleeps"
    )
    assert lines[2].split() == ["IOPS", "bytes/s", "p50", "p90", "p99", "p99.9", "max"]
    assert lines[3].startswith("read ")
    assert lines[5].startswith("CPU per request: client ")
    assert lines[5].endswith("server unknown")  # it is this very process
    assert lines[6].startswith("20 requests in ")
    assert len(lines) == 7


def test_a_verified_load_writes_json(
    server: Serving, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The file has the figures; the table comes as well, with both kinds and what was checked."""
    disk, file = Ram(), tmp_path / "figures.json"
    options = ["--op", "rw", "--verify", "--destroy-data", "--size", "64K", "--packed"]
    assert main.main(words(server.add(disk), *options, "--json", str(file))) == 0
    figures = json.loads(file.read_text())
    assert figures["read"]["requests"] + figures["write"]["requests"] == 20
    assert figures["checked"] == figures["read"]["requests"] + 16
    assert figures["load"]["packed"]
    assert figures["load"]["size"] == 64 << 10
    assert figures["read"]["latency_us"]["max"] >= figures["read"]["latency_us"]["p50"] > 0
    out = capsys.readouterr().out
    assert f"verified: {figures['checked']} blocks were read, and all were right" in out
    assert {line.split(" ")[0] for line in out.splitlines()} > {"read", "write"}
    assert any(disk.data)


def test_json_on_stdout_is_all_there_is(
    server: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that reads it finds nothing else."""
    assert main.main(words(server.add(Ram()), "--json", "-")) == 0
    assert json.loads(capsys.readouterr().out)["read"]["requests"] == 20


class Interrupting(Ram):
    """Sends SIGINT at its tenth read."""

    reads = 0

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self.reads += 1
        if self.reads == 10:
            os.kill(os.getpid(), signal.SIGINT)
        super().read(offset, views)


def test_an_interrupt_ends_it_and_is_reported(
    server: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C: what was measured is printed, the status is that of an interrupt."""
    before = signal.getsignal(signal.SIGINT)
    path = server.add(Interrupting())
    assert main.main(["bench", str(path), "--depth", "1", "--seconds", "3600"]) == 130
    assert ", ended early; " in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


class Failing(Ram):
    """Fails every read."""

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        raise PermissionError(f"{len(views)} views at {offset}")


def test_failures_are_no_success(server: Serving, capsys: pytest.CaptureFixture[str]) -> None:
    """The table counts them by kind, and the status tells."""
    assert main.main(words(server.add(Failing()))) == 1
    out, err = capsys.readouterr()
    assert "failed: 20 ioerr\n" in out
    assert err == "vhostblk: 20 requests failed\n"


@pytest.mark.parametrize(
    "asked",
    [
        ("--cpus", "3-2"),
        ("--cpus", "a"),
        ("--bytes", "4Q"),
        ("--size", "-1"),
        ("--seconds", "nan"),
        ("--seconds", "0"),
        ("--warm-up", "inf"),
        ("--timeout", "1000001"),
    ],
)
def test_values_that_are_none(capsys: pytest.CaptureFixture[str], asked: tuple[str, str]) -> None:
    """What to write instead is in the line, which says for which option."""
    assert main.main(["bench", NOWHERE, *asked]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"vhostblk bench: Invalid value for '{asked[0]}': ")
    assert asked[1] in said
    assert said.count("\n") == 1


def report(us: int) -> Report:
    buckets = [0] * BUCKETS
    buckets[640] = 1000
    latency = Histogram(buckets, us * 1000 * 1000, us * 1000)
    nothing = Histogram([0] * BUCKETS, 0, 0)
    return Report(
        plan=Plan(
            load=Load(op="rw", queues=2),
            event_idx=True,
            indirect=True,
            piece=4096,
            queue_size=256,
            blocks=256,
        ),
        seconds=1.5,
        interrupted=False,
        read=Kind(requests=1000, iops=1234567.0, bytes_per_s=5.05e9, latency=latency),
        write=Kind(requests=0, iops=0.0, bytes_per_s=0.0, latency=nothing),
        client_cpu_us=0.5,
        server_cpu_us=1.25,
        server=77,
        failed={"ioerr": 0, "other": 2},
        kicks=0.25,
        sleeps=0.125,
        missed_calls=3,
        checked=0,
    )


def test_table_is_aligned_and_in_units_for_people() -> None:
    """Three digits, the unit that fits; what did not happen is left out."""
    assert bench_shown.table(bench_shown.document(report(us=20000))) == (
        "rw (70 % reads) 4K at random in 1M, depth 32, 2 queues (split, EVENT_IDX, INDIRECT), "
        "the client sleeps\n"
        "\n"
        "      IOPS   bytes/s    p50      p90      p99      p99.9    max\n"
        "read  1.23M  5.05 GB/s  17.0 ms  17.0 ms  17.0 ms  17.0 ms  20.0 ms\n"
        "\n"
        "CPU per request: client 0.50 us, server 1.25 us (process 77)\n"
        "1000 requests in 1.50 s; for each 0.250 kicks, 0.125 sleeps\n"
        "calls that never came: 3\n"
        "failed: 2 other"
    )


def test_progress_is_one_line() -> None:
    """What is going on, for how long, how fast, and what went wrong."""
    now = Progress(phase="load", seconds=3.2, ended=9, iops=412.0, bytes_per_s=1.7e6, failed=1)
    assert bench_shown.progress(now) == "measuring, 3 s: 412 IOPS, 1.70 MB/s, 1 failed"
