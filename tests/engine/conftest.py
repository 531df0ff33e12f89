from collections.abc import Callable, Iterator

import pytest
from engine.driver import Lane
from engine.harness import Rig, SteppedEngine

from vhostblk.engine.reference.engine import ReferenceEngine


def _native() -> SteppedEngine:
    pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)
    from vhostblk.engine.native import NativeEngine  # noqa: PLC0415 - where it was built

    return NativeEngine(threaded=False)


ENGINES: dict[str, Callable[[], SteppedEngine]] = {
    "native": _native,
    "reference": lambda: ReferenceEngine(threaded=False),
}
"""Every test that asks for a rig runs once for each."""


@pytest.fixture(params=sorted(ENGINES))
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Return an engine with a device, and take it apart again."""
    made = Rig(ENGINES[request.param])
    yield made
    made.close()


@pytest.fixture
def lane(rig: Rig) -> Lane:
    """Return a running queue."""
    return rig.lane()
