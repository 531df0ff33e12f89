"""
Front-ends that come and go, and queues that stop and start: nothing stays of any of them.

Each has guest memory, eventfds, a back-end channel, an inflight region and a dirty log; most hang
up with a ring that runs.  Several servers do their share side by side.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import running
from proc import status
from server_kit.hurried import Hurried
from server_kit.serving import until

from vhostblk.guest import Guest

FEW, MANY = 100, 100_000
SHARES = 4
CHUNK = 50
WARM_UP = 1000
"""More at once than ever later: front-ends that hurry meet those before them on their way out."""
SECONDS = 1500.0
MORE_KILOBYTES = 1024
"""By how much the least of the last quarter may exceed the most of the first half: of 25,000
rounds, each could leave 168 bytes."""
SLOW = pytest.mark.slow
Round = Callable[[Hurried, int], None]


@dataclass(frozen=True, slots=True)
class Left:
    """What a process has open."""

    fds: int
    mappings: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> "Left":
        process = Path("/proc") / str(pid)
        return cls(
            fds=len(list((process / "fd").iterdir())),
            # Those of the allocator come and go.
            mappings=(process / "maps").read_text().count("memfd:"),
            threads=len(list((process / "task").iterdir())),
        )


def reconnect(hurried: Hurried, rounds: int) -> None:
    """Connect, start a ring and hang up."""
    for i in range(rounds):
        with hurried.connected() as sock:
            if i % 4 == 0:
                hurried.restart(sock)


def restart(hurried: Hurried, rounds: int) -> None:
    """Stop a ring and start it again."""
    with hurried.connected() as sock:
        for _ in range(rounds):
            hurried.restart(sock)


def again(directory: Path, engine: str, one_round: Round, rounds: int) -> None:
    """Do *rounds* with a server of its own, and look at it in between."""
    directory.mkdir()
    path = directory / "s"
    with (
        running.serving("-q", "--engine", engine, "memory:1M", socket=path) as process,
        Hurried(path) as hurried,
    ):
        one_round(hurried, min(WARM_UP, rounds))
        with Guest.connect(path) as guest:
            guest.write(0, b"x" * 4096)
        rest = settled(process.pid)
        resident = []
        for _ in range(0, rounds, CHUNK):
            one_round(hurried, CHUNK)
            assert until(lambda: Left.of(process.pid) == rest), (Left.of(process.pid), rest)
            resident.append(status(process.pid, "VmRSS"))
        half, late = resident[: len(resident) // 2], resident[len(resident) * 3 // 4 :]
        assert min(late) < max(half) + MORE_KILOBYTES, resident[:: max(1, len(resident) // 20)]
        with Guest.connect(path) as guest:
            assert guest.read(0, 4096) == b"x" * 4096
        running.end(process)


def settled(pid: int) -> Left:
    """Return what it has open when that does not change any more."""
    found = [Left.of(pid)]

    def same() -> bool:
        threading.Event().wait(0.05)
        found.append(Left.of(pid))
        return len(found) > 4 and len(set(found[-4:])) == 1

    assert until(same)
    return found[-1]


@pytest.mark.parametrize("one_round", [reconnect, restart])
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_few_times(engine: str, one_round: Round, tmp_path: Path) -> None:
    """The descriptors, mappings of memfds and threads are those of before."""
    again(tmp_path / "one", engine, one_round, FEW)


@SLOW
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("one_round", [reconnect, restart])
def test_100_000_times(one_round: Round, tmp_path: Path) -> None:
    """And neither does memory grow."""
    with ThreadPoolExecutor(SHARES) as pool:
        shares = [
            pool.submit(again, tmp_path / str(i), "native", one_round, MANY // SHARES)
            for i in range(SHARES)
        ]
        for share in shares:
            share.result()
