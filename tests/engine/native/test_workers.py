"""Which worker serves a queue."""

import asyncio

import pytest

from vhostblk.disk.null import Null

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

from vhostblk.engine.native.engine import NativeEngine
from vhostblk.engine.poll import Poll


def test_queues_of_all_devices_share_all_workers() -> None:
    """Many devices of one queue each are spread as one device of many queues is."""

    async def loads(*devices: int) -> list[int]:
        engine = NativeEngine(3, threaded=False)
        shares = [engine.device(Null(1 << 20)) for _ in devices]
        queues = [
            share.queue(index, on_broken=lambda: None)
            for share, count in zip(shares, devices, strict=True)
            for index in range(count)
        ]
        return [len(worker.queues) for worker in engine._workers] if queues else []

    for devices in ((1,) * 6, (6,), (2, 2, 2)):
        assert asyncio.run(loads(*devices)) == [2, 2, 2]
    assert asyncio.run(loads(1)) == [1], "none is made that nobody needs"


@pytest.mark.parametrize(("text", "window"), [("7us", 7), ("0", 0), ("always", None)])
def test_every_worker_polls_as_it_is_told(text: str, window: int | None) -> None:
    """What was asked is the window each begins with; of one without an end there is no number."""

    async def windows() -> list[int | None]:
        engine = NativeEngine(2, poll=Poll.parse(text), threaded=False)
        queues = [engine.device(Null(1 << 20)).queue(0, on_broken=lambda: None) for _ in range(2)]
        return [one.window_us for one in engine.workers()] if queues else []

    assert asyncio.run(windows()) == [window, window]
