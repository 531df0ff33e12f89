"""Another process that takes over from a test's server."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server_kit import successors
from server_kit.serving import Serving

one_engine = pytest.mark.parametrize(
    "engine", ["native", pytest.param("reference", marks=pytest.mark.slow)]
)
"""For what no data plane has a part in: each of these tests starts an interpreter, or two."""


@contextmanager
def taken_over(server: Serving, *words: str) -> Iterator[None]:
    """Have another process take over; end that afterwards."""
    successor = server.run(server.upgrade.run(successors.command("take-over", *words)))
    try:
        yield
    finally:
        os.kill(successor.pid, signal.SIGTERM)
        assert os.waitpid(successor.pid, 0)[1] == 0
