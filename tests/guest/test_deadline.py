import pytest

from vhostblk.guest import DeadlineError
from vhostblk.guest.deadline import Deadline


def test_left_shrinks_and_ends() -> None:
    """A deadline gives what is left of it, and then an error that says what for."""
    now = 100.0
    deadline = Deadline("godot", at=102.0, clock=lambda: now)
    assert deadline.left() == 2.0
    now = 101.5
    assert deadline.left() == 0.5
    now = 102.0
    with pytest.raises(DeadlineError, match=r"^timed out waiting for godot$"):
        deadline.left()


def test_after_counts_from_now() -> None:
    """The usual constructor takes seconds."""
    assert 59 < Deadline.after(60, "x").left() <= 60
