"""
A server that is killed under load: nothing is lost, nothing is done twice.

The instants are random; `native/tests` stops at each store in turn.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import running
from server_kit.supervised import Supervisor, supervised

from vhostblk.guest import DisconnectedError, Guest, Ledger
from vhostblk.guest.iommu import Flush

BLOCKS = 96
DEPTH = 48
FEW = 2
MANY = 40

SLOW = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Way:
    """A data plane and a format of rings."""

    engine: str
    packed: bool = False
    in_order: bool = False
    iommu: Flush | None = None

    def __str__(self) -> str:
        more = "-in-order" * self.in_order + "-iommu" * (self.iommu is not None)
        return f"{self.engine}-{'packed' if self.packed else 'split'}{more}"


WAYS = (Way("native"), Way("native", packed=True), Way("reference"))
MORE_WAYS = (
    *WAYS,
    Way("native", in_order=True),
    Way("native", packed=True, in_order=True),
    Way("native", iommu="page"),
    Way("native", packed=True, iommu="global"),
)


def load(guest: Guest, ledger: Ledger, supervisor: Supervisor) -> None:
    """Keep requests in flight, while the server dies again and again, and settle them."""
    supervisor.loaded()
    turns = 0
    while not (supervisor.done and turns >= 4):
        try:
            turns += 1
            ledger.fill(DEPTH)
            # Now and then all is looked at; else some are in flight over several deaths.
            if turns % 16 == 0:
                ledger.verify()
            else:
                ledger.settle()
        except DisconnectedError:
            ledger.fill(DEPTH + 8)  # the guest goes on meanwhile
            with supervisor.explained():
                guest.reconnect(timeout=60)
            turns = 0
    ledger.verify()


def disk_of(kind: str, image: Path) -> str:
    if kind == "scattered":
        return f"python:server_kit.scattered:Scattered,path={image}"
    return f"file:{image},cache={kind}"


def crash(directory: Path, image: Path, way: Way, kind: str, kills: int) -> None:
    os.truncate(image, BLOCKS * 4096)
    words = ("--engine", way.engine, "--num-queues", "2", disk_of(kind, image))
    with (
        supervised(directory / "s", *words, kills=kills, seed=kills) as supervisor,
        Guest.connect(
            directory / "s",
            queues=2,
            queue_size=64,
            packed=way.packed,
            in_order=way.in_order,
            iommu=way.iommu,
        ) as guest,
    ):
        ledger = Ledger(guest, blocks=BLOCKS, seed=kills)
        load(guest, ledger, supervisor)
        assert guest.inflight is not None
        assert [guest.inflight.marked(i, packed=way.packed) for i in (0, 1)] == [[], []]
    ledger.compare(image.read_bytes())
    assert supervisor.killed == kills


@pytest.fixture(autouse=True)
def _kit_for_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "PACKAGES", f"{running.PACKAGES}:{running.ROOT / 'tests'}")


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[SLOW] * (way.engine == "reference")) for way in WAYS], ids=str
)
def test_a_few_deaths(way: Way, tmp_path: Path, image: Path) -> None:
    """Requests that end in any order, on two queues."""
    crash(tmp_path, image, way, "scattered", FEW)


@SLOW
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["scattered", "none", "writeback"])
@pytest.mark.parametrize("way", MORE_WAYS, ids=str)
def test_many_deaths(way: Way, kind: str, tmp_path: Path, direct_image: Path) -> None:
    """The same on files as well, of which one has real O_DIRECT; many times."""
    crash(tmp_path, direct_image, way, kind, MANY)
