"""The user's command: what its end means."""

import threading
from pathlib import Path

import pytest

from vhostblk.errors import VhostBlkError
from vhostblk.sweep.checker import Checker, Said

IMAGE = Path("/nowhere/it's here.img")


def test_status_0_is_good_and_others_are_not() -> None:
    """Unless they are said to be; the path is quoted, and the output kept."""
    assert Checker("echo {}; true").run(IMAGE, {}) == Said(
        good=True, how="ended with status 0", output=f"{IMAGE}\n"
    )
    assert Checker(": {}; exit 4").run(IMAGE, {}) == Said(
        good=False, how="ended with status 4", output=""
    )
    said = Checker(": {}; exit 1", good=(0, 1)).run(IMAGE, {})
    assert said is not None
    assert said.good


def test_it_is_told_which_state_it_is() -> None:
    """By its environment."""
    said = Checker(": {}; echo $VHOSTBLK_SEED").run(IMAGE, {"VHOSTBLK_SEED": "12"})
    assert said is not None
    assert said.output == "12\n"


def test_one_that_takes_too_long_has_found_something() -> None:
    """It is ended with all its children."""
    said = Checker(": {}; sleep 60 & wait", seconds=0.05).run(IMAGE, {})
    assert said is not None
    assert (said.good, said.how) == (False, "took more than 0.05 s")


def test_one_that_cannot_be_run_is_an_error() -> None:
    """Not a bad state; and without a place for the path it is refused at once."""
    with pytest.raises(VhostBlkError, match=r"cannot be run: .*no-such-program"):
        Checker("no-such-program {}").run(IMAGE, {})
    with pytest.raises(VhostBlkError, match=r"has no {}: write it where"):
        Checker("e2fsck -fn")


def test_one_that_is_stopped_says_nothing() -> None:
    """And no other begins."""
    checker = Checker("echo {}; sleep 60")
    timer = threading.Timer(0.05, checker.stop)
    timer.start()
    assert checker.run(IMAGE, {}) is None
    assert checker.run(IMAGE, {}) is None
    timer.join()


def test_of_a_long_output_the_end_is_kept() -> None:
    """As that is where a checker says what is wrong."""
    said = Checker(": {}; seq 100000").run(IMAGE, {})
    assert said is not None
    assert said.output.endswith("99999\n100000\n")
    assert len(said.output) == 64 << 10
