"""
The pytest fixture of the fake guest.

Installing this package makes ``vhost_user_guest`` available; nothing else is registered.
"""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from vhostblk.guest.guest import Guest


@contextlib.contextmanager
def closing_guests() -> Iterator[Callable[..., Guest]]:
    """
    Make guests that are closed at the end of the block, the last one first.

    Yields:
        A function with the arguments of ``Guest.connect``.
    """
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(Guest.connect(*args, **kwargs))


@pytest.fixture
def vhost_user_guest() -> Iterator[Callable[..., Guest]]:
    """Connect fake guests to a back-end; see ``Guest.connect`` for the arguments."""
    with closing_guests() as connect:
        yield connect
