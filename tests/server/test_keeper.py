"""The queue behind a ring."""

import pytest
import uvloop
from server_kit.engine import FakeQueue

from vhostblk.server.keeper import Keeper
from vhostblk.server.log import Log


@pytest.mark.parametrize("retired", [False, True])
def test_a_retired_queue_is_not_run_to_be_quiet(*, retired: bool) -> None:
    """Its memory may be gone; any other takes no more, runs, and is drained."""
    queue = FakeQueue(0, lambda: None, None)
    keeper = Keeper(
        0,
        make_queue=lambda: queue,
        may_run=lambda: True,
        on_dead=lambda: None,
        drain_seconds=1.0,
        log=Log("vhostblk.test", "bench"),
    )
    keeper.retired = retired
    queue.is_unused.set()

    async def quiet() -> None:
        assert await keeper.quiet(enabled=True, seconds=1.0)
        assert (("run",) in queue.calls) is not retired
        await keeper.go_on(enabled=True)
        assert queue.running is not retired

    uvloop.run(quiet())
