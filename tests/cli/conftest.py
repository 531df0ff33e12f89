"""An image to serve; and commands that run in the tests' own process leave no trace there."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostblk.cli import report

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an image file of 8 MiB."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    return path


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    log = logging.getLogger("vhostblk")
    before = (log.handlers, log.propagate, log.level)
    yield
    log.handlers, log.propagate, log.level = before
    logging.getLogger(report.MESSAGES).setLevel(logging.NOTSET)
