from collections.abc import Callable

import pytest

from vhostblk.server.slices import SLICE_SECONDS, Slices


class Time:
    """A clock that is wound by hand, and a loop whose turns are counted."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[Callable[[], None]] = []

    def clock(self) -> float:
        return self.now

    def call_soon(self, what: Callable[[], None]) -> None:
        self.soon.append(what)

    def turn(self) -> None:
        """One turn of the loop: what was to be called when it began."""
        soon, self.soon = self.soon, []
        for what in soon:
            what()


class Working:
    """
    Has work of a given length, in steps.

    Args:
        time: Passes while it works.
        steps: Seconds, one after the other.
        log: Where each step is noted.
    """

    def __init__(self, time: Time, steps: list[float], log: list["Working"]) -> None:
        self.time = time
        self.steps = steps
        self.log = log

    def work(self, until: float) -> bool:
        while self.steps:
            self.time.now += self.steps.pop(0)
            self.log.append(self)
            if self.time.now >= until:
                return bool(self.steps)
        return False


def test_work_stops_at_the_end_of_a_slice() -> None:
    """Steps of some fifth of a slice: five, then the loop has its turn; nothing is left behind."""
    time, log = Time(), list[Working]()
    slices = Slices(time.call_soon, time.clock)
    slices.wake(Working(time, [SLICE_SECONDS / 4.9] * 12, log))
    assert not log  # not inside of the one who wakes
    done = []
    while time.soon:
        time.turn()
        done.append(len(log))
    assert done == [5, 10, 12]


def test_a_slice_is_shared() -> None:
    """All that have work together get one slice between two turns of the loop, in turn."""
    time, log = Time(), list[Working]()
    slices = Slices(time.call_soon, time.clock)
    greedy = Working(time, [SLICE_SECONDS] * 3, log)
    small = [Working(time, [SLICE_SECONDS / 3.9], log) for _ in range(5)]
    for one in (greedy, *small):
        slices.wake(one)
        slices.wake(one)
    expected = [[greedy], small[:4], [small[4], greedy], [greedy]]
    for step in expected:
        log.clear()
        time.turn()
        assert log == step
    assert not time.soon


def test_who_is_forgotten_works_no_more() -> None:
    """Others go on."""
    time, log = Time(), list[Working]()
    slices = Slices(time.call_soon, time.clock)
    gone, stays = Working(time, [0.0], log), Working(time, [0.0], log)
    slices.wake(gone)
    slices.wake(stays)
    slices.forget(gone)
    time.turn()
    assert log == [stays]
    slices.forget(gone)
    assert not time.soon


class Broken(Working):
    """Raises when it is to work."""

    def work(self, until: float) -> bool:
        raise ValueError(until)


def test_one_that_raises_keeps_no_other_from_its_turn() -> None:
    """Those behind it are not left waiting for somebody else's work to come."""
    time, log = Time(), list[Working]()
    slices = Slices(time.call_soon, time.clock)
    stays = Working(time, [0.0], log)
    slices.wake(Broken(time, [], log))
    slices.wake(stays)
    with pytest.raises(ValueError, match="100"):
        time.turn()
    time.turn()
    assert log == [stays]
    assert not time.soon
