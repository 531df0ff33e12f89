import asyncio
from typing import cast

from vhostblk.disk.nbd_link import Link
from vhostblk.disk.nbd_unstable import Send, Unstable


def test_what_a_flush_covers_is_forgotten_and_the_rest_is_sent_in_order() -> None:
    """A flush covers what was added before it was sent, no more."""
    sent: list[str] = []

    def send(name: str) -> Send:
        def one(_: Link) -> "asyncio.Future[None]":
            sent.append(name)
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_result(None)
            return future

        return one

    unstable = Unstable()
    for name in "ab":
        unstable.add(send(name), 1000)
    covered = unstable.last
    for name in "cd":
        unstable.add(send(name), 0)
    full = unstable.cost
    unstable.stable(covered)
    assert 0 < unstable.cost < full - 2000
    asyncio.run(unstable.replay(cast("Link", None)))
    assert sent == ["c", "d"]
    unstable.stable(unstable.last)
    assert unstable.cost == 0
