import errno
import os
import socket

import uvloop
from frontend_bytes import u64, vring
from server_kit.wire import ALL_PROTOCOL_FEATURES, LINUX, START, wired


def test_qemus_first_messages_are_answered() -> None:
    """
    What QEMU sends at connect is answered in its order, long before SET_FEATURES.

    Source: PROTOCOL.md, "Traced sequence".
    """

    async def connect() -> None:
        async with wired() as wire:
            features = int.from_bytes(await wire.ask(1), "little")
            assert features & LINUX == LINUX
            assert features & 1 << 33
            assert features & 1 << 26
            offered = int.from_bytes(await wire.ask(15), "little")
            assert offered == ALL_PROTOCOL_FEATURES
            wire.tell(16, u64(offered))
            assert await wire.ask(17) == u64(2)
            assert await wire.ask(36) == u64(509)
            ours, theirs = socket.socketpair()
            assert await wire.acked(21, fds=[theirs.detach()]) == 0
            wire.tell(3)
            await wire.done()
            for index in range(2):
                assert await wire.acked(13, u64(index), [os.eventfd(0)]) == 0
                assert await wire.acked(14, u64(index), [os.eventfd(0)]) == 0
            assert [queue.names() for queue in wire.engine.queues] == [["call", "err"]] * 2
            ours.close()

    uvloop.run(connect())


def test_protocol_features_that_were_not_offered_are_refused() -> None:
    """An ack of PAGEFAULT, which is not offered, ends the connection: nothing can say no."""

    async def refuse() -> None:
        async with wired() as wire:
            wire.tell(16, u64(ALL_PROTOCOL_FEATURES | 1 << 8))
            assert await wire.gone()

    uvloop.run(refuse())


def test_without_bit_30_rings_are_enabled_from_the_start() -> None:
    """
    A front-end that did not ack bit 30 needs no SET_VRING_ENABLE.

    Spec: vhost-user, "Ring states".
    """

    async def start() -> None:
        async with wired() as wire:
            await wire.negotiate(features=LINUX & ~(1 << 30))
            await wire.plug()
            await wire.set_up()
            assert wire.queue.names() == ["kick", *START]

    uvloop.run(start())


def test_set_features_twice_changes_nothing() -> None:
    """QEMU sends SET_FEATURES twice per start; the same again is fine while rings run."""

    async def twice() -> None:
        async with wired() as wire:
            await wire.start()
            wire.queue.names()
            assert await wire.acked(2, u64(LINUX)) == 0
            assert wire.queue.names() == []

    uvloop.run(twice())


def test_other_features_are_refused_while_rings_run() -> None:
    """
    Only LOG_ALL may change under a running ring, not even along with another bit.

    Spec: vhost-user, "VHOST_USER_SET_FEATURES".
    """

    async def change() -> None:
        async with wired() as wire:
            await wire.start()
            fewer = LINUX & ~(1 << 9)
            for features in (fewer, fewer | 1 << 26, LINUX | 1 << 34, 0):
                assert await wire.acked(2, u64(features)) == errno.EBUSY
            assert wire.attachment.features == LINUX
            assert wire.queue.running

    uvloop.run(change())


def test_protocol_features_stay_while_rings_run() -> None:
    """A ring behind an IOMMU would go on without one; the same once more changes nothing."""

    async def change() -> None:
        async with wired() as wire:
            await wire.start()
            wire.tell(16, u64(ALL_PROTOCOL_FEATURES))
            await wire.done()
            assert wire.queue.running
            wire.tell(16, u64(ALL_PROTOCOL_FEATURES & ~(1 << 5)))
            assert await wire.gone()

    uvloop.run(change())


def test_features_are_derived_again_at_each_start() -> None:
    """After a reset firmware may ack less than Linux did: the next start obeys it."""

    async def again() -> None:
        async with wired() as wire:
            await wire.start()
            wire.tell(34)
            wire.tell(2, u64(0x140000046))
            await wire.set_up()
            wire.queue.calls.clear()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert ("features", 0x140000046) in wire.queue.calls
            assert ("blk", True) in wire.queue.calls  # it cannot flush: every write is stable

    uvloop.run(again())
