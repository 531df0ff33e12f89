import logging
import sys
from collections.abc import Sequence
from types import ModuleType

import pytest

from vhostblk.engine.choose import load
from vhostblk.engine.poll import Poll
from vhostblk.engine.reference.engine import ReferenceEngine
from vhostblk.errors import VhostBlkError

NATIVE = "vhostblk.engine.native"


@pytest.fixture
def no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the compiled core impossible to import, built or not."""
    monkeypatch.setitem(sys.modules, NATIVE, None)


def test_reference_is_what_it_says() -> None:
    """Asked for by name, the reference engine is made without a look at the core."""
    assert load("reference").name == "reference"


@pytest.mark.usefixtures("no_core")
def test_auto_falls_back_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Without the compiled core the reference engine serves, and one line says so."""
    with caplog.at_level(logging.WARNING):
        engine = load("auto")
    assert isinstance(engine, ReferenceEngine)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.usefixtures("no_core")
def test_native_is_not_replaced_behind_ones_back() -> None:
    """Who asks for the core by name gets it, or one line that says what to do."""
    with pytest.raises(VhostBlkError, match="install a wheel"):
        load("native")


def test_auto_prefers_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the core can be imported it is taken, without a word."""
    core = ModuleType(NATIVE)
    made = ReferenceEngine(threaded=False)
    asked: list[tuple[int | None, Poll | None, Sequence[int]]] = []

    def make(workers: int | None, *, poll: Poll | None, cpus: Sequence[int]) -> ReferenceEngine:
        asked.append((workers, poll, cpus))
        return made

    monkeypatch.setattr(core, "NativeEngine", make, raising=False)
    monkeypatch.setitem(sys.modules, NATIVE, core)
    assert load("auto") is made
    assert load("native", workers=3, poll=Poll.parse("always"), cpus=(1, 0, 5)) is made
    assert asked == [(None, None, ()), (3, Poll.parse("always"), (1, 0, 5))]


def test_an_engine_that_is_none_is_refused() -> None:
    """A name that was mistyped is not taken for ``auto``."""
    with pytest.raises(VhostBlkError, match="no engine 'c': there are auto, native, reference"):
        load("c")  # type: ignore[arg-type]
