import os
import time

from vhostblk.guest.process_clock import cpu_seconds


def test_our_own_time_is_what_the_clock_says() -> None:
    """It is the clock of the whole process, in seconds."""
    before = time.process_time()
    told = cpu_seconds(os.getpid())
    assert told is not None
    assert before <= told <= time.process_time()


def test_a_process_that_is_gone_has_no_time() -> None:
    """A child that was waited for."""
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    assert cpu_seconds(child) is None
