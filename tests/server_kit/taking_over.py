"""Another process that takes over from a test's server."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from server_kit import successors
from server_kit.serving import Serving


@contextmanager
def taken_over(server: Serving, *words: str) -> Iterator[None]:
    """Have another process take over; end that afterwards."""
    successor = server.run(server.upgrade.run(successors.command("take-over", *words)))
    try:
        yield
    finally:
        os.kill(successor.pid, signal.SIGTERM)
        assert os.waitpid(successor.pid, 0)[1] == 0
