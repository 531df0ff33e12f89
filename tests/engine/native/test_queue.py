"""What only the bound C core can get wrong."""

from collections.abc import Iterator

import pytest
from engine.harness import Rig

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

from vhostblk.engine.native import NativeEngine
from vhostblk.engine.native.core import lib

ROOM = 8192
ENDLESS = 10 * ROOM


class Flood:
    """The core, of a guest that stores samples as fast as they are taken."""

    def __init__(self, lib: object) -> None:
        self._lib = lib
        self.taken = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._lib, name)

    def vhb_queue_take_samples(self, _handle: object, _out: object, n: int) -> int:
        self.taken += n
        return n if self.taken < ENDLESS else 0


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(lambda: NativeEngine(threaded=False))
    yield made
    made.close()


def test_samples_comes_back_from_a_guest_that_never_stops(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was there is taken, and what came meanwhile at most once more: others wait."""
    lane = rig.lane()
    with monkeypatch.context() as patch:
        patch.setattr("vhostblk.engine.native.tell.lib", flood := Flood(lib))
        taken = lane.queue.samples()
    assert len(taken) == flood.taken == 2 * ROOM
