"""A command run inside the tests' own process leaves no trace there."""

import logging
from collections.abc import Iterator

import pytest

from vhostblk.cli import report


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    log = logging.getLogger("vhostblk")
    before = (log.handlers, log.propagate, log.level)
    yield
    log.handlers, log.propagate, log.level = before
    logging.getLogger(report.MESSAGES).setLevel(logging.NOTSET)
