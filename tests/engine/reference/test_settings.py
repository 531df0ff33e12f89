import os

import pytest

from vhostblk.engine.reference.settings import Line, Settings
from vhostblk.errors import Refused


def test_line_makes_its_fd_non_blocking_and_closes_it() -> None:
    """
    A front-end's eventfd may block; ours must never hang the worker.

    PROTOCOL, "Kick/call/err fds".
    """
    line = Line()
    fd = os.eventfd(0)
    line.put(fd)
    assert not os.get_blocking(fd)
    assert not line.read()
    assert not line.deaf
    line.put(None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_line_that_is_closed_at_the_other_end_is_not_read_again() -> None:
    """A pipe instead of an eventfd, hung up, would be readable for ever."""
    reader, writer = os.pipe()
    line = Line()
    line.put(reader)
    os.close(writer)
    assert not line.read()
    assert line.deaf
    line.put(None)


def test_line_that_is_full_is_signalled() -> None:
    """Writing never blocks and never raises, whatever the front-end gave us."""
    line = Line()
    assert not line.write()
    fd = os.eventfd(0xFFFFFFFE)
    line.put(fd)
    os.eventfd_write(fd, 0xFFFFFFFFFFFFFFFE - 0xFFFFFFFE)
    assert line.write()
    line.put(os.open("/dev/full", os.O_WRONLY))
    assert line.write()
    line.put(None)


def test_settings_want_a_place_before_a_run() -> None:
    """A ring that was never placed is refused, not crashed on."""
    with pytest.raises(Refused):
        Settings().layout()
