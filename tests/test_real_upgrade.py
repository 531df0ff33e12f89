"""A real guest under load whose server is replaced: it stays connected, and waits for a moment."""

from pathlib import Path

import pytest
from guest_boot import verified
from guest_boot.verified import NEW, QEMUS, RINGS, Maker, Qemu
from upgrading import served

pytestmark = pytest.mark.guest

ROUNDS = 20
LONGEST_MS = 500.0
"""Longer than that no upgrade may pause a guest, on a host as busy as those that run tests."""


def rounds(tmp_path: Path, n: int, qemu: Qemu, ring: str) -> list[float]:
    """Upgrade *n* times under one guest; return how long it was paused, in milliseconds."""
    maker = Maker(qemu, tmp_path, ring)
    image, path = verified.image_in(tmp_path), tmp_path / "s"
    # Past the page cache: in it every write is over at once, and in order.
    words = ("--socket-path", path, "--num-queues", str(maker.queues), f"file:{image},cache=none")
    with served(*words, cwd=tmp_path) as server:
        with maker.vm(path, tmp_path) as vm:
            verified.wait_for_beats(vm)
            for _ in range(n):
                server.upgrade()
                verified.wait_for_beats(vm)
            verified.end(vm, image)
        log = server.end()
    assert log.count("a front-end has connected") == log.count("the front-end is gone") == 1
    assert "WARNING" not in log
    assert "ERROR" not in log
    assert max(server.pauses) < LONGEST_MS
    return server.pauses


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("qemu", QEMUS)
def test_guest_does_not_notice_that_its_server_is_replaced(
    tmp_path: Path, qemu: Qemu, ring: str
) -> None:
    """
    Three upgrades under load: nothing is lost, and QEMU is never told to connect again.

    Each block is what its last write made it, by the guest's book and in the image.
    """
    pauses = rounds(tmp_path, 3, qemu, ring)
    print("paused for", *(f"{pause:.1f}" for pause in pauses), "ms")  # noqa: T201 - with -s


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ring", RINGS)
def test_guest_does_not_notice_twenty_upgrades(tmp_path: Path, ring: str) -> None:
    """Twenty in a row, one guest."""
    pauses = sorted(rounds(tmp_path, ROUNDS, NEW, ring))
    print(f"paused for {pauses[ROUNDS // 2]:.1f} ms, {pauses[-1]:.1f} ms at most")  # noqa: T201
