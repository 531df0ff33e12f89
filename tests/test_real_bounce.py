"""Real guests whose buffers are bounced as in a confidential one, by swiotlb."""

import hashlib
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from guest_boot import platforms, scenarios, slow_disk
from guest_boot.platforms import BOUNCED, BOUNCED_SEGMENT
from guest_boot.servers import Disk

pytestmark = pytest.mark.guest

POOL = 32768
"""Slots of 2 KiB: 64 MiB, what Linux takes unless it is told otherwise."""
TINY_POOL = 1024


def test_bounced_guest_formats_writes_and_verifies(tmp_path: Path) -> None:
    """
    The way a confidential guest goes: iommu_platform without an IOMMU, every buffer bounced.

    A segment has 256 KiB at most, and every slot of the pool comes back.  The front-end hides
    ACCESS_PLATFORM from us, so nothing goes through an IOMMU.
    """
    outcome = platforms.boot(tmp_path, BOUNCED)
    said = outcome.said
    assert int(said["segment"]) == BOUNCED_SEGMENT
    assert re.search(r"mapped \[mem 0x[0-9a-f]+-0x[0-9a-f]+\] \(64MB\)", said["window"])
    assert not outcome.translated
    assert int(said["slots"]) == POOL
    assert int(said["slots_used"]) == 0
    status = outcome.status
    assert (status["guest_dma"], status["translation"]) == ("bounced", "uva")
    assert status["segments_max_bytes"] == BOUNCED_SEGMENT
    assert status["bounce_slots_inflight"] == 0
    window = status["shared_window"]
    assert window["known"]
    start, end = (int(one, 16) for one in re.findall("0x[0-9a-f]+", said["window"])[:2])
    for one in window["ranges"]:
        assert start <= int(one["gpa"], 16) < int(one["gpa"], 16) + one["bytes"] <= end
    assert not any(start <= int(one["gpa"], 16) < end for one in window["rings"])
    assert 0 < status["bounce_slots_high_water"] <= outcome.slots_high <= POOL


def test_ordinary_guest_is_direct(tmp_path: Path) -> None:
    """The same machine with nothing of that: no window, and the longest segments we offer."""
    status = platforms.boot(tmp_path, replace(BOUNCED, kernel_options="")).status
    assert (status["guest_dma"], status["translation"]) == ("direct", "uva")
    assert not status["shared_window"]["known"]


def test_readers_with_too_small_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    When the pool is full the guest waits for us and asks again: no request fails, none is wrong.

    Two requests of 1 MiB fill it.  On a fast disk one emulated CPU has rarely two on their way.
    """
    image = tmp_path / "data"
    data = random.Random(1).randbytes(scenarios.READERS * scenarios.READ_LENGTH)
    image.write_bytes(data)
    monkeypatch.setenv("PYTHONPATH", str(Path(slow_disk.__file__).parents[1]), os.pathsep)
    disk = Disk(Path(f"python:guest_boot.slow_disk:SlowFile,path={image}"))
    machine = replace(BOUNCED, kernel_options=f"swiotlb={TINY_POOL},force iommu=soft")

    outcome = platforms.run(tmp_path, machine, disk, scenarios.TOGETHER)

    said = outcome.said
    assert int(said["full"]) > 0
    for reader in range(scenarios.READERS):
        part = data[reader * scenarios.READ_LENGTH :][: scenarios.READ_LENGTH]
        assert hashlib.sha256(part).hexdigest() == said[f"sum{reader}"]
    assert int(said["segment"]) == BOUNCED_SEGMENT
    assert int(said["slots"]) == TINY_POOL
    assert int(said["slots_used"]) == 0
    assert TINY_POOL // 2 < outcome.slots_high <= TINY_POOL
