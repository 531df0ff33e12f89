"""What ``confidential require`` refuses before the first request."""

import os
from contextlib import AbstractAsyncContextManager

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.wire import LINUX, REGION_SIZE, START, UVA, Wire, addresses, wired

from vhostblk.memory.ranges import OnViolation
from vhostblk.memory.space import Access
from vhostblk.server.policy import Confidential, parse_shared_ranges

BOTH = Access.READ | Access.WRITE
PAGE = 4096
VERSION_1 = 1 << 32
POOL = 0x40000
RANGES = f"{POOL:#x}+64K"
"""The ring of a wire is in the three pages at 0."""


def enforced(
    ranges: str = RANGES, policy: OnViolation = OnViolation.FAIL
) -> AbstractAsyncContextManager[Wire]:
    return wired(
        confidential=Confidential.REQUIRE,
        shared_ranges=parse_shared_ranges(ranges),
        on_violation=policy,
    )


@pytest.mark.parametrize(
    ("policy", "outside"),
    [
        (OnViolation.WARN, BOTH | Access.NOTED),
        (OnViolation.FAIL, Access(0)),
        (OnViolation.BREAK, Access.FATAL),
    ],
)
def test_a_queue_gets_the_ranges_and_its_ring(policy: OnViolation, outside: Access) -> None:
    """The ring's pages are allowed without being listed; the rest is as the policy says."""

    async def start() -> None:
        async with enforced(policy=policy) as wire:
            await wire.start()
            assert wire.queue.names() == ["kick", *START]
            assert [(one.iova, one.length, one.access) for one in wire.queue.segments] == [
                (0, 3 * PAGE, BOTH),
                (3 * PAGE, POOL - 3 * PAGE, outside),
                (POOL, 0x10000, BOTH),
                (POOL + 0x10000, REGION_SIZE - POOL - 0x10000, outside),
            ]

    uvloop.run(start())


@pytest.mark.parametrize("mode", [Confidential.OFF, Confidential.AUTO])
def test_other_modes_limit_nothing(mode: Confidential) -> None:
    """Off and auto serve whatever the table allows, with or without VERSION_1."""

    async def start() -> None:
        async with wired(confidential=mode) as wire:
            await wire.negotiate(LINUX & ~VERSION_1)
            await wire.plug()
            await wire.set_up()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert [(one.iova, one.length, one.access) for one in wire.queue.segments] == [
                (0, REGION_SIZE, BOTH)
            ]

    uvloop.run(start())


@pytest.mark.parametrize("enable_first", [False, True])
def test_no_ring_starts_without_version_1(
    caplog: pytest.LogCaptureFixture, *, enable_first: bool
) -> None:
    """
    Whichever message would start it is refused, with one line; with the feature it starts.

    Spec: virtio 1.3, 6, VIRTIO_F_VERSION_1.
    """

    async def start() -> None:
        async with enforced() as wire:
            await wire.negotiate(LINUX & ~VERSION_1)
            await wire.plug()
            if enable_first:
                assert await wire.acked(18, vring(0, 1)) == 0
                wire.tell(8, vring(0, 8))
                wire.tell(9, addresses(0))
                assert await wire.acked(12, u64(0), [os.eventfd(0)]) != 0
            else:
                await wire.set_up()
                assert await wire.acked(18, vring(0, 1)) != 0
            assert not any("run" in queue.names() for queue in wire.engine.queues)
            assert await wire.ask(11, vring(0, 0)) == vring(0, 0)
            assert caplog.text.count("the driver has not acked feature bits 0x100000000") == 1
            wire.tell(2, u64(LINUX))
            await wire.set_up()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert "run" in wire.queue.names()

    uvloop.run(start())


def test_a_ring_outside_is_refused_where_it_must_be_inside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    ``rings=inside``: the ack says no, the ring stays stopped, one line says where it was.

    What is inside starts; what runs is not moved outside.
    """

    async def start() -> None:
        async with enforced(RANGES + ",rings=inside") as wire:
            await wire.negotiate()
            await wire.plug()
            await wire.set_up()
            assert await wire.acked(18, vring(0, 1)) != 0
            assert caplog.text.count("a ring at GPA 0x0 lies outside the shared ranges") == 1
            assert "run" not in wire.queue.names()
            # The used ring's last byte is what counts, too.
            for desc in (POOL - PAGE, POOL + 0x10000 - 2 * PAGE):
                wire.tell(9, addresses(0, UVA + desc))
                assert await wire.acked(18, vring(0, 1)) != 0
            wire.tell(9, addresses(0, UVA + POOL))
            assert await wire.acked(18, vring(0, 1)) == 0
            assert wire.queue.running
            assert await wire.acked(9, addresses(0, UVA)) != 0
            assert wire.queue.running
            assert await wire.acked(9, addresses(0, UVA + POOL + PAGE)) == 0
            assert wire.queue.running

    uvloop.run(start())


def test_memory_that_comes_later_is_limited_as_well() -> None:
    """A region that is plugged while a ring runs adds nothing the ranges do not name."""

    async def plug() -> None:
        ranges = f"{RANGES},{REGION_SIZE + 2 * PAGE:#x}+4K"
        async with enforced(ranges) as wire:
            await wire.start()
            before = [one for one in wire.queue.segments if one.access]
            assert await wire.plug(REGION_SIZE) == 0
            after = [one for one in wire.queue.segments if one.access]
            assert after[:-1] == before
            assert (after[-1].iova, after[-1].length) == (REGION_SIZE + 2 * PAGE, PAGE)

    uvloop.run(plug())


def test_bit_33_is_offered_unless_told_otherwise() -> None:
    """``access_platform`` is one bit of GET_FEATURES."""

    async def features(*, on: bool) -> int:
        async with wired(access_platform=on) as wire:
            return int.from_bytes(await wire.ask(1), "little")

    offered = uvloop.run(features(on=True))
    assert offered >> 33 & 1
    assert uvloop.run(features(on=False)) == offered & ~(1 << 33)
