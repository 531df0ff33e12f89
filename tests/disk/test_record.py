"""The layer that records, without a core: its file, and what it says of it."""

import asyncio
import errno
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from vhostblk.disk.memory import Memory
from vhostblk.disk.record import Record
from vhostblk.disk.stage import RecordState, Stage
from vhostblk.errors import VhostBlkError
from vhostblk.trace.reader import read


class Recorder:
    """A stage whose file takes nothing until it is told to."""

    def __init__(self) -> None:
        self.wake_fd = os.eventfd(0)
        self.now = RecordState(words=5, taken=5, bytes=0, lost=5, dropped=0, error=errno.ENOSPC)
        self.flushed = threading.Event()

    def set(self, stage: Stage) -> None:
        """Do nothing."""

    def counters(self) -> dict[str, int]:
        """Count nothing."""
        return {}

    def flush(self) -> None:
        """Tell that somebody asked."""
        self.flushed.set()

    def take(self) -> bytes:
        """Have nothing."""
        return b""

    def state(self) -> RecordState:
        """Return what the test says."""
        return self.now


def test_a_full_disk_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line when it is full, one with what is missing when it is not any more."""
    layer, recorder = Record(Memory(512), path=tmp_path / "t"), Recorder()
    asyncio.run(layer.open())
    layer.bind(recorder)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            recorder.flushed.clear()
            os.eventfd_write(recorder.wake_fd, 1)
            assert recorder.flushed.wait(10)
        assert layer.settings()["error"] == "No space left on device"
        recorder.now = replace(recorder.now, error=0)
        asyncio.run(layer.close())
    os.close(recorder.wake_fd)
    full, again = (record.getMessage() for record in caplog.records)
    assert "takes nothing more (No space left on device)" in full
    assert "recording goes on; 40 bytes of it are missing" in again


def test_a_torn_tail_is_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is behind the last whole block goes, with a line; a segment is appended."""
    path = tmp_path / "t"
    for _ in range(2):
        asyncio.run(_open_and_close(path))
        with path.open("ab") as file:
            file.write(b"VHBT torn")
    assert "these 9 bytes are cut off" in caplog.text
    trace = read(path)
    assert [one.ended for one in trace.segments] == [True, True]
    assert trace.end == path.stat().st_size - 9


def test_what_cannot_be_recorded_to_is_said(tmp_path: Path) -> None:
    """A directory that is not there, a device, a payload that is none."""
    with pytest.raises(VhostBlkError, match="No such file or directory"):
        asyncio.run(_open_and_close(tmp_path / "no" / "t"))
    with pytest.raises(VhostBlkError, match="is no regular file"):
        asyncio.run(_open_and_close(Path("/dev/null")))
    with pytest.raises(VhostBlkError, match="write payload= and one of none, digest, full"):
        Record(Memory(512), path=tmp_path / "t", payload="all")


async def _open_and_close(path: Path) -> None:
    layer = Record(Memory(512), path=path)
    await layer.open()
    await layer.close()
