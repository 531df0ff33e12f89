"""The load generator against our own servers, good ones and bad ones."""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args

import pytest
from server_kit.disks import Ram
from server_kit.serving import Serving, serving

from vhostblk.disk.memory import Memory
from vhostblk.disk.null import Null
from vhostblk.engine.choose import EngineName
from vhostblk.guest import DisconnectedError, GuestError
from vhostblk.guest.errors import MismatchError
from vhostblk.guest.load import Load, Op, Wait
from vhostblk.guest.load_report import Progress, Report

run_module = pytest.importorskip(
    "vhostblk.guest.load_run", reason="no load generator", exc_type=ImportError
)
MIB = 1 << 20
RINGS = [
    pytest.param(Load(packed=packed, indirect=extras, event_idx=extras), id=name)
    for name, packed, extras in (
        ("split", False, True),
        ("split-bare", False, False),
        ("packed", True, True),
        ("packed-bare", True, False),
    )
]


@pytest.fixture(params=sorted(set(get_args(EngineName)) - {"auto"}))
def server(request: pytest.FixtureRequest) -> Iterator[Serving]:
    with serving(request.param) as running:
        yield running


def put(server: Serving, disk: object, load: Load, **options: object) -> Report:
    with run_module.LoadRun.connect(server.add(disk, **options), load) as run:
        report = run.run()
    assert isinstance(report, Report)
    return report


@pytest.mark.parametrize("wait", get_args(Wait))
@pytest.mark.parametrize("rings", RINGS)
def test_every_ring_carries_every_request(server: Serving, rings: Load, wait: Wait) -> None:
    """As many requests as asked for, each with what it must read; on two queues, if they sleep."""
    load = replace(rings, op="rw", bytes=1024, depth=4, requests=60, verify=True, size=64 << 10)
    queues = 1 if wait == "poll" else 2  # each takes a CPU, and the server wants one too
    report = put(server, Memory(MIB), replace(load, wait=wait, queues=queues), num_queues=2)
    assert report.requests == 60
    assert report.read.latency.count == report.read.requests
    assert report.checked == report.read.requests + 64
    assert not any(report.failed.values())
    assert report.missed_calls == 0
    assert 0 < report.read.latency.percentile(50) <= report.read.latency.max_ns
    assert report.plan.indirect == rings.indirect


def test_what_is_written_is_on_the_disk(server: Serving) -> None:
    """Sequential writes of several pieces each reach every byte of the disk but the rest of it."""
    disk = Ram(MIB + 512)
    load = Load(op="write", bytes=256 << 10, depth=2, order="seq", requests=4)
    report = put(server, disk, load)
    assert (report.write.requests, report.read.requests) == (4, 0)
    assert all(disk.data[at] or disk.data[at + 1] for at in range(0, MIB, 512))
    assert not any(disk.data[MIB:])


def test_the_same_seed_gives_the_same_order(server: Serving) -> None:
    """Random blocks are a walk that is the seed's."""

    def walk(seed: int) -> list[object]:
        disk = Ram()
        put(server, disk, Load(depth=1, requests=20, seed=seed))
        return [call[1] for call in disk.calls if call[0] == "read"]

    once, again, other = walk(5), walk(5), walk(6)
    assert once == again
    assert once != other
    assert len(set(once)) > 10


class Lying(Ram):
    """Returns another block's bytes once everything was written."""

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        super().read(offset + 4096 if offset == 8192 else offset, views)


class Forgetful(Ram):
    """Forgets what is written to one sector for the second time."""

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        before = bytes(self.data[8192:8704])
        super().write(offset, views)
        if any(before):
            self.data[8192:8704] = before


class Turning(Ram):
    """Turns one bit over."""

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self.data[8192 + 700] ^= 0x10
        super().read(offset, views)


@pytest.mark.parametrize(
    ("disk", "op", "offset", "says"),
    [
        (Lying, "read", 8192, "generation 1 of sector 16 was written last, and sector 24 was read"),
        (Forgetful, "write", 8200, "generation 2 of sector 16 .*, and generation 1 was read"),
        (Turning, "read", 8192 + 696, "generation 1 of sector 17 .*, and damaged data was read"),
    ],
)
def test_a_lying_disk_is_caught(
    server: Serving, disk: type[Ram], op: Op, offset: int, says: str
) -> None:
    """The first byte that is wrong is named, and what is there."""
    load = Load(op=op, depth=1, order="seq", size=32 << 10, requests=8, verify=True, tag=5)
    with pytest.raises(MismatchError, match=says) as caught:
        put(server, disk(), load)
    assert caught.value.offset == offset


class Full(Ram):
    """Says that it has written, and has not, from some time on."""

    full = False

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        if not self.full:
            super().write(offset, views)


def test_what_another_run_has_written_is_not_taken_for_ours(server: Serving) -> None:
    """A disk that drops all writes is caught though its stamps look like those of this run."""
    disk = Full()
    put(server, disk, Load(depth=1, size=32 << 10, requests=8, verify=True, tag=5))
    disk.full = True
    with pytest.raises(MismatchError, match="nothing that this run wrote"):
        put(server, disk, Load(depth=1, size=32 << 10, requests=8, verify=True, tag=6))


class Failing(Ram):
    """Fails every read."""

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        raise OSError(errno.EIO, f"{len(views)} views at {offset}")


def test_failures_are_counted_by_status(server: Serving) -> None:
    """A disk that fails is not a fast one."""
    report = put(server, Failing(), Load(depth=2, requests=10))
    assert report.failed == {"ioerr": 10, "unsupported": 0, "other": 0, "unwritten": 0}
    assert (report.requests, report.iops) == (0, 0)


class Unwritable(Ram):
    """Fails every write."""

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        raise OSError(errno.ENOSPC, f"{len(views)} views at {offset}")


def test_failures_are_counted_in_all_phases(server: Serving) -> None:
    """What could not be filled is not checked, and not passed over in silence."""
    load = Load(op="read", depth=1, requests=5, size=32 << 10, verify=True)
    report = put(server, Unwritable(), load)
    assert (report.failed["ioerr"], report.checked) == (8, 0)


def test_a_read_only_disk_is_not_written(server: Serving) -> None:
    """Nor is it asked to be."""
    disk = Ram()
    with pytest.raises(GuestError, match="read-only"):
        put(server, disk, Load(op="write"), read_only=True)
    assert put(server, disk, Load(depth=1, requests=3), read_only=True).requests == 3


def test_more_queues_than_there_are(server: Serving) -> None:
    """The back-end's number is in the line."""
    with pytest.raises(GuestError, match="serves 2 queues, not 3"):
        put(server, Null(MIB), Load(queues=3), num_queues=2)


def test_queues_that_are_too_large(server: Serving) -> None:
    """Ours have 1024 descriptors at most; what was asked for is in the line."""
    with pytest.raises(GuestError, match="for 1 queues of 2048 descriptors"):
        put(server, Null(MIB), Load(queue_size=2048))


class Counting(Ram):
    """Does something at its twentieth read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.then = threading.Event()

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self.reads += 1
        if self.reads == 20:
            self.then.set()
        super().read(offset, views)


@contextmanager
def stopping(run: object, disk: Counting) -> Iterator[None]:
    """Stop a run as soon as the disk has served some requests."""

    def stop() -> None:
        assert disk.then.wait(10)
        run.stop()  # type: ignore[attr-defined]

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_run_that_is_stopped_reports_what_was_measured(server: Serving) -> None:
    """A load for an hour ends when it is told to; nothing stays in flight."""
    disk = Counting()
    load = Load(seconds=3600, warm_up=0, depth=1)
    with run_module.LoadRun.connect(server.add(disk), load) as run, stopping(run, disk):
        report = run.run()
    assert report.interrupted
    assert report.requests >= 20 - 1
    assert report.seconds < 3600


def test_a_check_that_is_stopped_is_not_complete(server: Serving) -> None:
    """All that was asked for was read, but not all that was written: that is no success."""
    disk = Counting()
    load = Load(depth=1, requests=4, size=128 << 10, verify=True)
    with run_module.LoadRun.connect(server.add(disk), load) as run, stopping(run, disk):
        report = run.run()
    assert report.interrupted == (report.checked < 4 + 32)
    assert report.requests == 4


def test_a_back_end_that_hangs_up_is_told_at_once(server: Serving) -> None:
    """Not after a timeout."""
    disk = Counting()

    def hang_up() -> None:
        assert disk.then.wait(10)
        server.stop()

    stopper = threading.Thread(target=hang_up)
    with run_module.LoadRun.connect(server.add(disk), Load(seconds=3600, timeout=60)) as run:
        stopper.start()
        with pytest.raises(DisconnectedError):
            run.run()
    stopper.join()


class Slow(Ram):
    """Takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self.go_on.wait(10)
        super().read(offset, views)


def test_a_silent_back_end_is_given_up(server: Serving) -> None:
    """The line says how many requests it owes."""
    disk = Slow()
    with run_module.LoadRun.connect(server.add(disk), Load(depth=3)) as run:
        object.__setattr__(run.plan.load, "timeout", 0.01)
        with pytest.raises(
            GuestError, match=r"queue 0: 3 requests in flight, no answer for 0\.01 s"
        ):
            run.run()
        disk.go_on.set()


def test_progress_is_told(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so often, with what was counted so far; the warm-up comes first, and is not counted."""
    monkeypatch.setattr(run_module, "TICK", 0.005)
    told: list[Progress] = []

    def tell(progress: Progress) -> None:
        told.append(progress)
        if progress.phase == "load" and progress.ended > told[0].ended:
            run.stop()

    load = Load(seconds=3600, warm_up=0.01, depth=1)
    with run_module.LoadRun.connect(server.add(Null(MIB)), load) as run:
        report = run.run(tell)
    assert [one.phase for one in told[:2]] == ["warm-up", "load"]
    assert [one.ended for one in told] == sorted(one.ended for one in told)
    assert report.requests > 0
    assert report.seconds > 0


def test_a_run_ends_in_time(server: Serving) -> None:
    """What is measured is at least as long as asked for, without the warm-up."""
    report = put(server, Null(MIB), Load(seconds=0.02, warm_up=0.01, depth=1))
    assert report.seconds >= 0.02
    assert not report.interrupted


def test_threads_run_where_they_are_told(server: Serving) -> None:
    """A CPU that is not there is an error, one that is there is not."""
    [cpu, *_] = os.sched_getaffinity(0)
    assert put(server, Null(MIB), Load(requests=1, cpus=(cpu,))).requests == 1
    with pytest.raises(GuestError, match="no thread can run on CPU 9999"):
        put(server, Null(MIB), Load(requests=1, cpus=(9999,)))


def test_whoever_is_told_may_raise(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load has ended before that is raised: its memory goes with the run."""
    monkeypatch.setattr(run_module, "TICK", 0.005)

    def tell(progress: Progress) -> None:
        raise BrokenPipeError(progress.phase)

    before = threading.active_count()
    with run_module.LoadRun.connect(server.add(Null(MIB)), Load(seconds=3600, warm_up=0)) as run:
        connected = threading.active_count()
        with pytest.raises(BrokenPipeError, match="load"):
            run.run(tell)
        assert threading.active_count() == connected
    assert before <= connected
