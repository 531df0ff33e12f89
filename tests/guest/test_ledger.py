"""The checked load, against a disk that is right and disks that are not quite."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_peers.qsd import SIZE, Daemon, storage_daemon
from guest_peers.rogue import rogue

from vhostblk.guest import FrontEnd, Guest, Ledger, LedgerError
from vhostblk.guest.ledger import contents


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with storage_daemon(tmp_path, SIZE) as running:
        yield running


def test_a_disk_that_is_right(daemon: Daemon) -> None:
    """Load on four queues, what is in flight never overlapping, leaves what the ledger says."""
    with Guest.connect(daemon.path, queues=4) as guest:
        ledger = Ledger(guest, blocks=32, seed=3)
        for _ in range(50):
            ledger.fill(12)
            busy = [block for entry in ledger._flying for block in entry.blocks]
            assert len(busy) == len(set(busy))
            ledger.settle()
        ledger.verify()
        assert ledger.in_flight == 0
    assert ledger.writes > 30
    ledger.compare(daemon.image.read_bytes()[: 32 * 4096])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (contents(1, 5), "write 1 to block 5"),
        (contents(2, 4), "write 2 to block 4"),
        (bytes(4096), "zeros"),
        (contents(2, 5)[:2048] + contents(1, 5)[:2048], "parts of several writes"),
    ],
)
def test_a_block_that_is_wrong(daemon: Daemon, wrong: bytes, words: str) -> None:
    """An older write, another block's, none, or a torn one."""
    with Guest.connect(daemon.path) as guest:
        ledger = Ledger(guest, blocks=8)
        ledger._holds[5] = 2
        with daemon.image.open("r+b") as image:
            image.seek(5 * 4096)
            image.write(contents(2, 5))
        ledger.verify()
        with daemon.image.open("r+b") as image:
            image.seek(5 * 4096)
            image.write(wrong)
        with pytest.raises(LedgerError, match=f"block 5 holds {words} instead of write 2"):
            ledger.verify()


def test_a_request_that_fails() -> None:
    """Every status but OK is an error, and so is every read of something else."""
    for status in (b"\1", b"\0"):
        with (
            rogue(lambda _view, _chain: None, status=status) as backend,
            Guest(FrontEnd.over(backend.front)) as guest,
        ):
            guest.start()
            ledger = Ledger(guest, blocks=64)
            with pytest.raises(LedgerError):  # noqa: PT012 - whichever comes first
                ledger.fill(16)
                ledger.settle_all()
