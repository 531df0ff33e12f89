"""What ``confidential require`` refuses before the first request, and what it learns after it."""

import os
from contextlib import AbstractAsyncContextManager

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.wire import LINUX, REGION_SIZE, START, UVA, Wire, addresses, wired

from vhostblk.memory.ranges import Limit, OnViolation, Range
from vhostblk.memory.sample import Role, Sample
from vhostblk.memory.space import Access
from vhostblk.memory.window import GuestDma
from vhostblk.server.enforcement import Enforcement, Step
from vhostblk.server.log import Log
from vhostblk.server.policy import Confidential, parse_shared_ranges
from vhostblk.server.promise import DeviceOptions

BOTH = Access.READ | Access.WRITE
PAGE = 4096
VERSION_1 = 1 << 32
INDIRECT = 1 << 28
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


@pytest.mark.parametrize("mode", Confidential)
def test_what_is_sampled(mode: Confidential) -> None:
    """Off: nothing.  With learn= what is learned from, and one request that ends the last."""

    async def start() -> tuple[int, int] | None:
        if mode is Confidential.REQUIRE:
            connection = enforced("learn=50")
        else:
            connection = wired(confidential=mode)
        async with connection as wire:
            await wire.start()
            return wire.queue.sampling

    every = 61
    asked = {"off": None, "auto": (33, every), "require": (51, every)}
    assert uvloop.run(start()) == asked[mode]


def test_bit_33_is_offered_unless_told_otherwise() -> None:
    """``access_platform`` is one bit of GET_FEATURES."""

    async def features(*, on: bool) -> int:
        async with wired(access_platform=on) as wire:
            return int.from_bytes(await wire.ask(1), "little")

    offered = uvloop.run(features(on=True))
    assert offered >> 33 & 1
    assert uvloop.run(features(on=False)) == offered & ~(1 << 33)


# ---- what is learned, told and condemned ------------------------------------------------------


class Held:
    """
    An enforcement with a clock of its own and memory where a GPA is an address less 1 MiB.

    Args:
        ranges: Shared ranges.
        policy: On a violation.
        mode: The mode.
    """

    def __init__(
        self,
        ranges: str,
        policy: OnViolation = OnViolation.FAIL,
        mode: Confidential = Confidential.REQUIRE,
    ) -> None:
        self.now = 100.0
        options = DeviceOptions(
            confidential=mode, shared_ranges=parse_shared_ranges(ranges), on_violation=policy
        )
        self.features = LINUX
        self.enforcement = Enforcement(
            options,
            Log("vhostblk.test", "vda"),
            clock=lambda: self.now,
            features=lambda: self.features,
        )

    def heed(
        self, *samples: Sample, index: int = 0, guest_dma: GuestDma = GuestDma.UNKNOWN
    ) -> Step:
        return self.enforcement.heed(index, samples, self._locate, guest_dma)

    def window(self, *rings: Range) -> Limit | None:
        return self.enforcement.window(rings)

    @staticmethod
    def _locate(iova: int, length: int) -> list[Range]:
        return [(iova - MIB, length)] if iova >= MIB else []


MIB = 1 << 20


def sample(chain: int, page: int, *, outside: bool = False) -> Sample:
    return Sample(chain, MIB + page * PAGE, 512, Role.WRITABLE, outside)


def test_learning_ends_with_the_hull_of_what_was_seen(caplog: pytest.LogCaptureFixture) -> None:
    """
    Everything goes until so many requests are complete; then their hull and the rings, no more.

    It is GPAs that are learned, of both queues together.  That one more request has begun shows
    that the one before it is complete.
    """
    caplog.set_level("INFO")
    held = Held("learn=40", OnViolation.BREAK)
    assert held.enforcement.learns == 40
    assert held.window((0, 512)) is None
    first = [sample(chain, 16 + chain % 4) for chain in range(39)]
    assert held.heed(*first) is Step.NOTHING
    assert held.window() is None
    assert held.enforcement.learning
    assert held.heed(sample(0, 24), sample(1, 24), index=1) is Step.NOTHING
    assert held.heed(sample(2, 24), index=1) is Step.LIMIT
    assert not held.enforcement.learning
    window = held.window((100 * PAGE + 16, 512))
    assert window is not None
    assert window.inside.rows == ((16 * PAGE, 25 * PAGE), (100 * PAGE, 101 * PAGE))
    assert (window.on_violation, window.rings_too) == (OnViolation.BREAK, False)
    assert not caplog.messages, "not before the queues are held to it"
    held.enforcement.limited()
    assert "learned from 40 requests: only guest memory 0x10000-0x19000 and the" in caplog.text
    assert held.heed(sample(3, 200), sample(4, 300), index=1) is Step.NOTHING
    assert held.window() is not None
    assert held.window().inside.rows == ((16 * PAGE, 25 * PAGE),)


def test_learning_heeds_nothing_behind_its_end() -> None:
    """Numbers of chains begin again after 65535: a low one behind that is of a later chain."""
    held = Held("learn=32")
    samples = [sample(chain, 16) for chain in range(33)]
    assert held.heed(*samples, sample(3, 99), sample(64, 99)) is Step.LIMIT
    window = held.window()
    assert window is not None
    assert window.inside.rows == ((16 * PAGE, 17 * PAGE),)


def test_ranges_and_learning_add_up() -> None:
    """What is listed stays allowed, and is widened by its slack; what is learned is not."""
    held = Held(f"{0x40 * PAGE:#x}+4K,slack=4K,learn=32")
    assert held.window() is None
    step = Step.NOTHING
    for chain in range(33):
        assert step is Step.NOTHING
        step = held.heed(sample(chain, 16 if chain < 32 else 99))
    assert step is Step.LIMIT
    window = held.window()
    assert window is not None
    assert window.inside.rows == ((16 * PAGE, 17 * PAGE), (0x3F * PAGE, 0x42 * PAGE))


def test_every_start_learns_anew() -> None:
    """A guest that has rebooted has its pool elsewhere; firmware had none."""
    held = Held("learn=32")
    assert held.heed(*(sample(chain, 16) for chain in range(33))) is Step.LIMIT
    held.enforcement.end()
    assert held.window() is None
    assert held.heed(*(sample(chain, 50) for chain in range(32))) is Step.NOTHING
    assert held.heed(sample(32, 99)) is Step.LIMIT
    window = held.window()
    assert window is not None
    assert window.inside.rows == ((50 * PAGE, 51 * PAGE),)


def test_violations_are_told_once_per_second(caplog: pytest.LogCaptureFixture) -> None:
    """A guest that does nothing else fills no log; the address is that of the last one."""
    held = Held(RANGES)
    held.heed(sample(0, 1), sample(0, 2, outside=True))
    assert caplog.messages == [
        (
            "vda: queue 0: a request names 512 bytes at 0x102000 (writable), outside the shared "
            "ranges: it is not served"
        )
    ]
    for _ in range(50):
        held.now += 0.01
        held.heed(sample(1, 3, outside=True), sample(1, 4, outside=True))
    assert len(caplog.messages) == 1
    held.now += 0.6
    held.heed(Sample(2, 0x5000, 64, Role.TABLE, outside=True), index=3)
    assert caplog.messages[1:] == [
        (
            "vda: queue 3: a request names 64 bytes at 0x5000 (an indirect table), outside the "
            "shared ranges: it is not served; 100 more like it"
        )
    ]


@pytest.mark.parametrize("policy", OnViolation)
def test_a_direct_guest_is_condemned(policy: OnViolation, caplog: pytest.LogCaptureFixture) -> None:
    """
    It is an error, said once; with on-violation warn it is a warning.

    A queue that starts after the others were stopped is stopped as well.
    """
    held = Held(RANGES, policy)
    expected = Step.NOTHING if policy is OnViolation.WARN else Step.CONDEMN
    for guest_dma in (GuestDma.UNKNOWN, GuestDma.BOUNCED, GuestDma.IOMMU):
        assert held.heed(sample(0, 1), guest_dma=guest_dma) is Step.NOTHING
    assert not caplog.messages
    assert held.heed(sample(0, 1), guest_dma=GuestDma.DIRECT) is expected
    assert held.heed(sample(0, 1), index=1, guest_dma=GuestDma.DIRECT) is expected
    assert len(caplog.messages) == 1
    assert "do not go through a bounce pool" in caplog.text
    held.enforcement.end()
    assert held.heed(sample(0, 1), guest_dma=GuestDma.DIRECT) is expected


def test_other_modes_heed_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Auto watches elsewhere; nothing here is said or done."""
    held = Held("", mode=Confidential.AUTO)
    assert held.heed(sample(0, 1, outside=True), guest_dma=GuestDma.DIRECT) is Step.NOTHING
    assert (held.window(), held.enforcement.learns, caplog.messages) == (None, 0, [])


def test_firmware_is_held_to_nothing_unless_asked(caplog: pytest.LogCaptureFixture) -> None:
    """
    A driver that acks no indirect descriptors is let through, with one line a start.

    Source: SeaBIOS, src/hw/virtio-blk.c; edk2, OvmfPkg/VirtioBlkDxe.
    """
    caplog.set_level("INFO")
    for where, held_to in (("", False), (",firmware=any", False), (",firmware=inside", True)):
        held = Held(RANGES + where)
        held.features = LINUX & ~INDIRECT
        held.enforcement.begin()
        held.enforcement.begin()
        assert (held.window() is not None) == held_to
        step = held.heed(sample(0, 1, outside=True), guest_dma=GuestDma.DIRECT)
        assert step is (Step.CONDEMN if held_to else Step.NOTHING)
        assert caplog.text.count("as firmware is: its requests may go anywhere") == (not held_to)
        held.enforcement.end()
        held.features = LINUX
        held.enforcement.begin()
        assert held.window() is not None
        caplog.clear()
