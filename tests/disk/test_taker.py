"""The thread that takes what was recorded: when it does, and how it ends."""

import os
import threading
from collections.abc import Iterator

import pytest

from vhostblk.disk.taker import Taker

NEVER = 3600.0
"""Seconds: longer than any test waits."""


@pytest.fixture
def wake_fd() -> Iterator[int]:
    """Return what says that enough waits."""
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def test_it_takes_when_enough_waits(wake_fd: int) -> None:
    """Whatever is left of the period."""
    taken = threading.Event()

    def take() -> None:
        if not taken.is_set():
            os.eventfd_read(wake_fd)
            taken.set()

    taker = Taker("take", wake_fd, take, period=NEVER)
    os.eventfd_write(wake_fd, 1)
    assert taken.wait(10)
    taker.close()


def test_it_takes_once_in_a_period(wake_fd: int) -> None:
    """Also where little waits."""
    taken = threading.Event()
    taker = Taker("take", wake_fd, taken.set, period=0.001)
    assert taken.wait(10)
    taker.close()


def test_its_end_does_not_wait_for_the_period(wake_fd: int) -> None:
    """What is there is taken, and the thread is gone."""
    taken: list[str] = []
    taker = Taker("take", wake_fd, lambda: taken.append("all"), period=NEVER)
    closing = threading.Thread(target=taker.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert taken == ["all"]
