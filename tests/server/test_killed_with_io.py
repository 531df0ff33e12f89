"""A server that is killed while the kernel has I/O of its, and the next one; for real."""

import signal
import time
from pathlib import Path

import pytest
import running
from server_kit.dead import killed, wait_until_open

from vhostblk.disk.lock import ORPHAN_SECONDS
from vhostblk.guest import Guest
from vhostblk.guest.blk import Request
from vhostblk.guest.errors import DeadlineError

X = b"x" * 4096
SLOW = pytest.mark.slow
"""Several processes each, that wait for one another."""
SOON_S = ORPHAN_SECONDS / 3
"""Much less than the wait, and enough for a loaded machine."""


@pytest.fixture(autouse=True)
def _core() -> None:
    pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)


@pytest.mark.parametrize("words", ["--read-only", pytest.param("locking=off", marks=SLOW)])
def test_what_a_dead_server_reads_is_not_read_again_meanwhile(words: str, image: Path) -> None:
    """
    The request would come back, and the kernel write to memory that is the guest's again.

    QEMU's locks show nothing of it: those of readers are shared, and here others are not taken.
    """
    image.write_bytes(X * 256)
    path = image.with_name("s")
    disk = (words, str(image)) if words.startswith("--") else (f"file:{image},{words}",)
    with running.serving(*disk, socket=path) as first, Guest.connect(path) as guest:
        assert guest.read(0, 4096) == X
        with killed(first, image) as under_way, running.serving(*disk, socket=path) as second:
            read = guest.submit(Request.read(0, 4096))
            guest.reconnect(timeout=running.TIMEOUT_S)
            with pytest.raises(DeadlineError):
                guest.wait(read, timeout=0.1)
            under_way.end()
            assert guest.wait(read, timeout=running.TIMEOUT_S).data == X
            log = running.end(second)
    assert log.count("the queues wait") == 1


def test_a_writer_starts_when_the_last_write_of_a_dead_one_has_landed(image: Path) -> None:
    """Its lock has no owner any more, and is waited for; then all is as ever."""
    path = image.with_name("s")
    with running.serving(image, socket=path) as first, Guest.connect(path) as guest:
        guest.write(0, X)
        with killed(first, image) as under_way, running.serving(image, socket=path) as second:
            guest.submit(Request.read(0, 512))
            wait_until_open(second, image)
            under_way.end()
            guest.reconnect(timeout=running.TIMEOUT_S)
            assert guest.read(0, 4096) == X
            running.end(second)


@pytest.mark.parametrize("sig", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=SLOW)])
def test_a_server_that_waits_for_a_lock_ends_when_told_to(sig: signal.Signals, image: Path) -> None:
    """SIGTERM, and Ctrl-C: at once, with status 0, and nothing left."""
    path = image.with_name("s")
    with (
        running.serving(image, socket=path) as first,
        killed(first, image),
        running.serving(image, socket=path) as second,
    ):
        wait_until_open(second, image)
        begun = time.monotonic()
        log = running.end(second, sig)
        assert time.monotonic() - begun < SOON_S
    assert "bytes on 1 queue" not in log
    assert not path.exists()
