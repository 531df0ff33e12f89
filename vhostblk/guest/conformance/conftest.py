"""Errors that end the run before it begins; loaded with ``--pyargs`` only."""

from pathlib import Path

import pytest

from vhostblk.guest.probe import find_fault
from vhostblk.guest.pytest_plugin import SOCKET


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """
    Look at the back-end once, if it is going to be tested.

    Raises:
        pytest.UsageError: There is none, or no guest can use it.
    """
    if not any(item.path.is_relative_to(Path(__file__).parent) for item in items):
        return
    path: Path | None = config.getoption(SOCKET)
    if path is None:
        raise pytest.UsageError(f"the conformance tests need a back-end: {SOCKET} PATH")
    if fault := find_fault(path):
        raise pytest.UsageError(fault)
