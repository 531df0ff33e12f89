import asyncio
import struct
from dataclasses import replace

import pytest
import uvloop
from server_kit.wire import QUIET, wired

from vhostblk.engine.api import Counters, Fault
from vhostblk.server import silence

WARNING = "the guest has kicked 3 times, but its rings read as empty"
SOON = QUIET / 2


def test_kicks_without_requests_are_explained(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A guest that kicks rings which stay empty has memory that is not shared: said once."""

    async def kick() -> None:
        monkeypatch.setattr(silence, "LISTEN_SECONDS", SOON)
        async with wired() as wire:
            await wire.start()
            wire.queue.done = Counters(kicks=3)
            for _ in range(1000):
                if WARNING in caplog.text:
                    break
                await asyncio.sleep(SOON)
            assert await wire.acked(18, struct.pack("=II", 0, 0)) == 0
            assert await wire.acked(18, struct.pack("=II", 0, 1)) == 0
            await asyncio.sleep(QUIET)

    uvloop.run(kick())
    assert caplog.text.count(WARNING) == 1
    assert "share=on" in caplog.text


@pytest.mark.parametrize(
    "done",
    [
        Counters(),
        *(
            replace(Counters(kicks=3), **{name: 1})
            for name in ("reads", "flushes", "get_ids", "errors", "malformed", "in_flight")
        ),
    ],
)
def test_a_guest_that_asks_or_sleeps_is_left_alone(
    done: Counters, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A request of any kind, or no kick at all, is no reason to speak."""

    async def wait() -> None:
        monkeypatch.setattr(silence, "LISTEN_SECONDS", SOON)
        async with wired() as wire:
            await wire.start()
            wire.queue.done = done
            await asyncio.sleep(QUIET)

    uvloop.run(wait())
    assert "read as empty" not in caplog.text


def test_a_broken_ring_has_said_enough(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is known to be broken is not called silent."""

    async def breaks() -> None:
        monkeypatch.setattr(silence, "LISTEN_SECONDS", SOON)
        async with wired() as wire:
            await wire.start()
            wire.queue.done = Counters(kicks=3)
            wire.queue.break_ring(Fault("head out of range", 3, 700))
            await asyncio.sleep(QUIET)

    uvloop.run(breaks())
    assert "queue 0 is broken" in caplog.text
    assert "read as empty" not in caplog.text
