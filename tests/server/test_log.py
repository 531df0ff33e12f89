"""How often a guest may make us log something."""

import logging

import pytest

from vhostblk.server.log import Allowance, Log, Told


def test_allowance_is_a_few_at_once_then_one_now_and_then() -> None:
    """It comes back with time, never to more than it was."""
    now = [100.0]
    allowance = Allowance(burst=3, seconds=10.0, clock=lambda: now[0])
    assert [allowance.take() for _ in range(5)] == [True, True, True, False, False]
    now[0] += 9.0
    assert not allowance.take()
    now[0] += 1.5
    assert [allowance.take() for _ in range(2)] == [True, False]
    now[0] += 1e6
    assert [allowance.take() for _ in range(5)] == [True, True, True, False, False]


def test_told_says_how_many_it_has_not(caplog: pytest.LogCaptureFixture) -> None:
    """Each line is logged or counted, with the traceback of what was raised or without."""
    now = [0.0]
    told = Told(Log("vhostblk.test", "vm0"), clock=lambda: now[0])
    lines = [told.tell(logging.WARNING, "line %d", i) for i in range(Told.BURST + 3)]
    assert lines == [True] * Told.BURST + [False] * 3
    now[0] += Told.SECONDS
    assert told.tell(logging.ERROR, "line %d", 99, error=OSError("this one"))
    assert caplog.messages[-1] == "vm0: line 99 (3 before were not told of)"
    assert "OSError: this one" in caplog.text
    now[0] += Told.SECONDS
    assert told.tell(logging.ERROR, "line %d", 100)
    assert caplog.messages[-1] == "vm0: line 100"
