import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from frontend_bytes import message, u64

from vhostblk.protocol.connection import Connection


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True, scope="package")
def _nothing_of_others() -> None:
    """What other rooms left to the garbage collector does not go in the middle of a test here."""
    gc.collect()


@pytest.fixture(autouse=True)
def _no_fd_left() -> Iterator[None]:
    """Every test of this room ends with the descriptors it began with."""
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def connection() -> Connection:
    """Return a connection with every protocol feature and SET_FEATURES behind it."""
    made = Connection(queues=2)
    for data in (message(16, u64((1 << 20) - 1)), message(2, u64(1 << 30))):
        made.receive(data[: made.want])
        accepted = made.receive(data[12:])
        assert accepted is not None
        assert made.reply(accepted, None) == (b"", ())
    return made
