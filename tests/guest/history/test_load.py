"""The checker through real virtqueues: finds planted bugs, has nothing against what is right."""

import errno
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from guest_history.planted import (
    BUGS,
    Cached,
    LostWrite,
    Misdirected,
    Misordered,
    Right,
    StaleRead,
    TornWrite,
)
from guest_peers.qsd import storage_daemon

from vhostblk.engine.choose import EngineName
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest
from vhostblk.guest.errors import GuestError
from vhostblk.guest.history import ConcurrentLoad, History, Kind, UnexplainedError, check
from vhostblk.kit.host import Host, serving

WORDS = {
    StaleRead: "overwritten|replaced",
    LostWrite: "overwritten|replaced",
    TornWrite: "a read returned what nobody wrote there: .*, then .* \\(torn\\)",
    Misordered: "overwritten|replaced",
    Misdirected: "a read returned what nobody wrote there: .*misdirected",
}


@pytest.fixture(params=["native", "reference"])
def engine(request: pytest.FixtureRequest) -> EngineName:
    """Return one of the data planes, if it is built."""
    name: EngineName = request.param
    try:
        Host(name).close()
    except VhostBlkError as error:
        pytest.skip(str(error))
    return name


def run(path: Path, requests: int, *, seed: int = 1, packed: bool = False) -> History:
    history = History(discarded="old or zeroes")
    with Guest.connect(path, queues=4, packed=packed) as guest:
        load = ConcurrentLoad(guest, history, seed=seed)
        load.fill()
        load.run(requests)
        load.read_all()
        assert load.in_flight == 0
    return history


@pytest.mark.parametrize("packed", [False, True])
def test_right_disk_passes(engine: EngineName, *, packed: bool) -> None:
    """Overlapping requests on four queues raise no alarm, in Python and in the core."""
    for disk in (Right(), "memory:32K"):
        with serving(disk, engine=engine) as path:
            check(run(path, 100, packed=packed))


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug_is_found(bug: type[Right]) -> None:
    """Each kind of bug is found in a few hundred requests, and named."""
    with (
        serving(bug()) as path,
        pytest.raises(UnexplainedError, match="sectors are wrong") as caught,
    ):
        check(run(path, 300))
    shown = next(one for one in caught.value.findings if re.search(WORDS[bug], str(one)))
    assert shown.read is not None
    assert shown.sector in shown.read.spans[0]
    assert shown.candidates
    assert len(shown.evidence) > 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_right_disks_pass_for_longer(engine: EngineName, tmp_path: Path, seed: int) -> None:
    """Nor do thousands of requests, to a file as well."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(32 << 10))
    for disk in (Right(seed), "memory:32K", f"file:{image}"):
        with serving(disk, engine=engine) as path:
            check(run(path, 3000, seed=seed, packed=bool(seed % 2)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_storage_daemon_passes(tmp_path: Path, seed: int) -> None:
    """Nor does a back-end that is not ours."""
    with storage_daemon(tmp_path, 1 << 20) as daemon:
        check(run(daemon.path, 3000, seed=seed))


class Failing(Right):
    """Every fifth write fails, half of these behind their effect."""

    async def write(self, offset: int, views: Sequence[memoryview]) -> None:
        if self.writes % 10 != 9:
            await super().write(offset, views)
        self.writes += self.writes % 10 == 9
        if self.writes % 5 == 0:
            raise OSError(errno.EIO, "planted")


def test_failed_writes_may_have_happened() -> None:
    """What a failed write was to write may be read, or not; neither is an alarm."""
    with serving(Failing()) as path:
        history = run(path, 200)
    assert sum(not one.ok for one in history.operations) > 5
    check(history)


def power_cuts(disk: Cached, *, seed: int) -> History:
    with serving(disk) as path, Guest.connect(path, queues=2) as guest:
        history = History(initially="zeroes")
        mix = {Kind.WRITE: 8, Kind.FLUSH: 1}
        load = ConcurrentLoad(guest, history, sectors=32, depth=3, mix=mix, seed=seed)
        load.fill()
        for _ in range(8):
            load.run(40)
            load.finish()
            disk.cut()
            load.power_cut()
            load.read_all()
    return history


def test_power_cut_may_lose_what_was_not_flushed() -> None:
    """A disk with a cache that honours flushes passes; one that forgets some is found."""
    check(power_cuts(Cached(), seed=2))
    with pytest.raises(UnexplainedError, match="left, as read later"):
        check(power_cuts(Cached(forgetful=True), seed=2))


def test_sectors_must_be_blocks_of_the_disk() -> None:
    """A load that does not fit the disk is refused, in words."""
    with serving("memory:32K", block_size=4096) as path, Guest.connect(path) as guest:
        with pytest.raises(GuestError, match="7 sectors from 0 are no blocks"):
            ConcurrentLoad(guest, History(), sectors=7)
        load = ConcurrentLoad(guest, History(), sectors=16, longest=12)
        load.run(20)
        load.finish()
        assert all(one.ok for one in load.history.operations)
