from collections.abc import Callable, Iterator

import pytest
from engine.driver import Lane
from engine.harness import Rig, SteppedEngine

from vhostblk.engine.native import NativeEngine
from vhostblk.engine.reference.engine import ReferenceEngine

ENGINES: dict[str, Callable[[], SteppedEngine]] = {
    "native": lambda: NativeEngine(threaded=False),
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
