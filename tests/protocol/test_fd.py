import os

import pytest

from vhostblk.protocol.fd import Fd


def test_fd_is_taken_once() -> None:
    """Who takes a descriptor owns it; nobody can take it again."""
    number = os.eventfd(0)
    fd = Fd(number)
    assert fd.owned
    assert fd.take() == number
    assert not fd.owned
    with pytest.raises(ValueError, match="taken or closed"):
        fd.take()
    fd.close()
    os.close(number)


def test_fd_closes_once() -> None:
    """Closing twice closes once: the number may be somebody else's by then."""
    fd = Fd(os.eventfd(0))
    fd.close()
    other = os.eventfd(0)
    fd.close()
    os.fstat(other)
    os.close(other)


def test_fd_that_is_dropped_warns_and_closes() -> None:
    """A descriptor nobody cared for is our bug, and still does not leak."""
    number = os.eventfd(0)
    fd = Fd(number)
    with pytest.warns(ResourceWarning, match="never taken"):
        del fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_fileno_lends_the_descriptor() -> None:
    """It stays here, and is gone when it was taken."""
    fd = Fd(os.dup(0))
    number = fd.fileno()
    assert fd.owned
    assert fd.take() == number
    os.close(number)
    with pytest.raises(ValueError, match="taken or closed"):
        fd.fileno()
