"""
The pytest fixtures that serve disks with our back-end.

Installing this package makes ``vhostblk_serve`` and ``vhostblk_spawn`` available.  Nothing is
imported before a test asks for one of them.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vhostblk.kit.process import ServerProcess


@pytest.fixture
def vhostblk_serve() -> Iterator[Callable[..., Path]]:
    """
    Serve disks in the process of the test; see ``vhostblk.kit.host.serving`` for the arguments.

    Yields:
        A function that takes a disk and returns its socket.
    """
    from vhostblk.kit.host import serving  # noqa: PLC0415 - most tests need no server

    with contextlib.ExitStack() as stack:
        yield lambda disk, **options: stack.enter_context(serving(disk, **options))


@pytest.fixture
def vhostblk_spawn() -> Iterator[Callable[..., "ServerProcess"]]:
    """
    Run ``vhostblk serve`` in processes of their own, which a test may kill.

    Yields:
        A function that takes the command's arguments and returns a ``ServerProcess``.
    """
    from vhostblk.kit.process import ServerProcess  # noqa: PLC0415 - most tests need no server

    with contextlib.ExitStack() as stack:

        def spawn(*arguments: str | os.PathLike[str], cwd: Path | None = None) -> ServerProcess:
            return stack.enter_context(ServerProcess(*arguments, cwd=cwd))

        yield spawn
