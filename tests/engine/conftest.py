from collections.abc import Callable, Iterator

import pytest
from engine.crashing import ROOT, Crashing, build, load
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
SPLIT = [f"{engine}-split" for engine in sorted(ENGINES)]
PACKED = [f"{engine}-packed" for engine in sorted(ENGINES)]
"""Every test that asks for a rig runs once for each of both."""


def make_rig(param: str) -> Rig:
    engine, form = param.split("-")
    return Rig(ENGINES[engine], packed=form == "packed")


@pytest.fixture(params=SPLIT + PACKED)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Return an engine with a device, and take it apart again."""
    made = make_rig(request.param)
    yield made
    made.close()


@pytest.fixture(params=SPLIT)
def split_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Return an engine whose rings are split, for what packed ones do not have."""
    made = make_rig(request.param)
    yield made
    made.close()


@pytest.fixture(params=PACKED)
def packed_rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Return an engine whose rings are packed, for what split ones do not have."""
    made = make_rig(request.param)
    yield made
    made.close()


@pytest.fixture
def lane(rig: Rig) -> Lane:
    """Return a running queue."""
    return rig.lane()


@pytest.fixture(scope="session")
def crashing() -> Crashing:
    """Return the core with places to die at."""
    pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)
    return load(build(ROOT / "build/crash-points"))
