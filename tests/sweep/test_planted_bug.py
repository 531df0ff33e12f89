"""A store that forgets one flush is found, by a seed that finds it again; the fixed one passes."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from power_kit import store
from power_kit.recorder import Recorder, recording, segment
from server_kit.disks import Ram
from server_kit.serving import serving

from vhostblk.cli.main import vhostblk
from vhostblk.disk.cut import Cut
from vhostblk.guest import Guest, StatusError
from vhostblk.sweep.checker import Said
from vhostblk.sweep.plan import Plan
from vhostblk.sweep.sweep import Subject, Sweep

SIZE = 1 << 16
COMMITS = 6
CHECK = f"{shlex.quote(sys.executable)} {shlex.quote(store.__file__)} {{}}"


class Judge:
    """The store's own check, in this process."""

    def run(self, image: Path, environ: Mapping[str, str]) -> Said:
        """Read the image as the store does."""
        assert set(environ) == {"VHOSTBLK_REQUEST", "VHOSTBLK_SEED"}
        fd = os.open(image, os.O_RDONLY)
        try:
            store.check(lambda at, length: os.pread(fd, length, at))
        except ValueError as error:
            return Said(good=False, how="raised", output=str(error))
        finally:
            os.close(fd)
        return Said(good=True, how="returned", output="")

    def stop(self) -> None:
        """There is nothing to stop."""


def record(path: Path, *, forgetful: bool, packed: bool = False) -> None:
    """Fill a store through the fake guest."""
    with recording(path, SIZE) as writer, serving("native") as server:
        socket = server.add(Recorder(Ram(SIZE), writer))
        with Guest.connect(socket, packed=packed) as guest:
            store.fill(guest, COMMITS, forgetful=forgetful)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.trace"
    record(path, forgetful=True)
    return path


def swept(path: Path, plan: Plan, directory: Path) -> Sweep:
    sweep = Sweep(Subject(segment(path), None, SIZE), plan, directory, jobs=2)
    try:
        sweep.run(Judge())
    finally:
        sweep.close()
    return sweep


def test_the_sweep_finds_the_forgotten_flush(bad: Path, tmp_path: Path) -> None:
    """Within the default seeds; and the same request with the same seed finds it again."""
    progress = swept(bad, Plan(), tmp_path).progress
    assert progress.failures
    failure = progress.failures[0]
    assert "is damaged" in failure.said.output
    state = failure.state
    only = Plan(at=frozenset({state.moment.number}), seed=state.cut.seed, seeds=1)
    again = swept(bad, only, tmp_path).progress
    assert again.checked == 1
    assert again.failures[0].state.cut == state.cut
    assert again.failures[0].said == failure.said


@pytest.mark.parametrize("packed", [False, True])
def test_the_correct_store_passes_the_whole_sweep(tmp_path: Path, *, packed: bool) -> None:
    """Every request, many seeds, torn writes among them."""
    path = tmp_path / "good.trace"
    record(path, forgetful=False, packed=packed)
    progress = swept(path, Plan(seeds=12), tmp_path).progress
    assert not progress.failures
    assert progress.checked > 50


def test_the_command_says_how_to_see_it_again(bad: Path, tmp_path: Path) -> None:
    """Status 3, the request, its seed, and what was lost; the line it prints finds it again."""
    kept = tmp_path / "kept.img"
    words = ["powercut", str(bad), "--from", "8", "--to", "9", "--seeds", "8", "--jobs", "2"]
    words += ["--check", CHECK, "--keep", str(kept)]
    result = CliRunner().invoke(vhostblk, words, standalone_mode=False)
    assert result.return_value == 3, result.output
    assert "BAD: request" in result.output
    assert "lost" in result.output
    assert "corrupt: commit" in result.output
    (again,) = [line for line in result.output.splitlines() if line.startswith("again: ")]
    second = CliRunner().invoke(vhostblk, shlex.split(again)[2:], standalone_mode=False)
    assert second.return_value == 3, second.output
    assert second.output.startswith(result.output[: result.output.index("the check ended")])
    with pytest.raises(ValueError, match="damaged"):
        store.check(reader(kept.read_bytes()))


def reader(image: bytes | bytearray) -> Callable[[int, int], bytes]:
    return lambda at, length: bytes(image[at : at + length])


def found_live(*, forgetful: bool, seeds: range) -> list[int]:
    """Cut the power of a served disk at a request, for each seed; return those that find a bug."""
    found = []
    with serving("native") as server:
        for seed in seeds:
            disk = Ram(SIZE)
            layer = Cut(disk, seed=seed, at=f"{8 + seed % 12}")
            with Guest.connect(server.add(layer)) as guest, pytest.raises(StatusError):
                store.fill(guest, COMMITS, forgetful=forgetful)
            try:
                store.check(reader(disk.data))
            except ValueError:
                found.append(seed)
    return found


def test_the_layer_finds_it_too() -> None:
    """Under a guest that runs: some seeds find the bug, and do so again; none finds one in vain."""
    found = found_live(forgetful=True, seeds=range(6))
    assert found
    assert found_live(forgetful=True, seeds=range(found[0], found[0] + 1)) == found[:1]
    assert found_live(forgetful=False, seeds=range(6)) == []
