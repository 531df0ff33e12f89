import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.engine import FakeEngine
from server_kit.left import mappings, open_fds
from server_kit.wire import LINUX, Wire, wired

from vhostblk.disk.memory import Memory
from vhostblk.server.inflight import region_size
from vhostblk.spec.virtio_ring import F_RING_PACKED

AREA = struct.Struct("=QQHHI")
OURS = "vhostblk-inflight"
ENTRIES = 1024
"""Of the largest ring, for which there must be room whatever QEMU says."""


def asked(queues: int = 2, size: int = 128) -> bytes:
    return AREA.pack(0, 0, queues, size, 0)


@contextmanager
def area(size: int) -> Iterator[int]:
    """Make a region as another implementation would."""
    fd = os.memfd_create("theirs")
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


async def take(wire: Wire, fd: int, *numbers: int) -> int:
    return await wire.acked(32, AREA.pack(*numbers, 0), [os.dup(fd)])


async def go(wire: Wire, num: int = 8, index: int = 0) -> None:
    """Start a ring of a connection that has negotiated."""
    await wire.plug()
    await wire.set_up(index, num=num)
    assert await wire.acked(18, vring(index, 1)) == 0


def test_a_region_is_zeroes_that_nobody_can_cut_off() -> None:
    """
    GET_INFLIGHT_FD answers with a sealed memfd, with room for either format and the largest ring.

    Spec: vhost-user, "VHOST_USER_GET_INFLIGHT_FD".
    """

    async def get() -> None:
        async with wired() as wire:
            await wire.negotiate()
            answer, (fd,) = await wire.ask_for_fds(31, asked())
            size, offset, queues, entries, _ = AREA.unpack(answer)
            assert (offset, queues, entries) == (0, 2, 128)
            assert size % (2 * 64) == 0
            assert size // 2 >= region_size(ENTRIES, packed=True)
            assert os.fstat(fd).st_size == size
            assert os.pread(fd, size, 0) == bytes(size)
            assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & 7 == 7
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size - 1)
            assert fd
            os.close(fd)

    uvloop.run(get())


def test_queues_get_their_parts_of_the_region() -> None:
    """Each ring's queue is given its stretch, and as many entries as its ring or more."""

    async def track() -> None:
        async with wired() as wire:
            await wire.negotiate()
            answer, (fd,) = await wire.ask_for_fds(31, asked())
            size, *_ = AREA.unpack(answer)
            wire.tell(32, answer, [fd])
            await go(wire, num=8)
            await go(wire, num=1024, index=1)
            first, second = (queue.inflight for queue in wire.engine.queues)
            assert first is not None
            assert second is not None
            (at, length), entries = first
            assert (length, entries) == (size // 2, 128)
            assert second == ((at + size // 2, size // 2), 1024)
            assert mappings(OURS) == 1
            assert wire.engine.guarded == 2  # the guest's, and this
        assert mappings(OURS) == 0
        assert wire.engine.guarded == 0

    uvloop.run(track())


def test_a_region_of_another_implementation_has_its_own_stride() -> None:
    """
    What each queue has is mmap_size divided by num_queues, from mmap_offset on.

    libvhost-user aligns to 64, yc-libvhost-server to nothing.
    """

    async def resume() -> None:
        async with wired() as wire:
            await wire.negotiate()
            stride = 16 + 16 * 128
            with area(4096 + 3 * stride) as fd:
                os.pwrite(fd, b"12345678", 4096 + stride)
                assert await take(wire, fd, 3 * stride, 4096, 3, 128) == 0
            await go(wire, num=128, index=1)
            assert wire.queue.inflight is not None
            (at, length), entries = wire.queue.inflight
            assert (length, entries) == (stride, 128)
            mapping = wire.attachment.inflight.area
            assert mapping is not None
            assert at == mapping.mapping.address + stride
            assert bytes(mapping.mapping.view(stride, 8)) == b"12345678"

    uvloop.run(resume())


@pytest.mark.parametrize(
    "numbers",
    [
        (4096, 0, 0, 128),
        (4096, 0, 1, 0),
        (4096, 0, 1, 40000),
        (0, 0, 1, 128),
        (31, 0, 1, 128),
        (4096, 0, 300, 128),
        (4096, 4, 1, 128),
        (4097 * 3, 0, 3, 128),
        (8192, 0, 1, 128),
        (4096, 4096, 1, 128),
        ((1 << 64) - 1, 0, 65535, 128),
        (4096, (1 << 64) - 4096, 1, 128),
        (1 << 40, 0, 1, 128),
    ],
)
def test_sizes_that_cannot_be_are_refused(numbers: tuple[int, ...]) -> None:
    """Whatever a front-end says of a region of 4096 bytes, none is used that is not all there."""

    async def refuse() -> None:
        async with wired() as wire:
            await wire.negotiate()
            before = open_fds()
            with area(4096) as fd:
                assert await take(wire, fd, *numbers) != 0
            assert open_fds() == before
            assert mappings("theirs") == 0
            await go(wire)
            assert wire.queue.inflight is None

    uvloop.run(refuse())


@pytest.mark.parametrize(("queues", "size"), [(0, 128), (3, 128), (2, 0), (2, 2048)])
def test_a_region_nobody_can_use_is_not_made(queues: int, size: int) -> None:
    """
    The answer then has size 0 and no descriptor.

    Spec: vhost-user, "VHOST_USER_GET_INFLIGHT_FD".
    """

    async def refuse() -> None:
        async with wired() as wire:
            await wire.negotiate()
            assert await wire.ask_for_fds(31, asked(queues, size)) == (bytes(24), [])

    uvloop.run(refuse())


def test_a_ring_that_is_too_big_for_the_region_runs_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """QEMU 10.0 has rings of 1024 and a region for 128 of whoever made it: said, and served."""

    async def run() -> None:
        async with wired() as wire:
            await wire.negotiate()
            with area(4096) as fd:
                assert await take(wire, fd, 4096, 0, 1, 128) == 0
            await go(wire, num=1024)
            assert wire.queue.inflight is None
            assert wire.queue.running

    uvloop.run(run())
    assert "no room for its 1024 descriptors" in caplog.text


def test_a_packed_ring_needs_twice_the_room() -> None:
    """What is enough for a split ring of 200 descriptors is not for a packed one."""

    async def run() -> None:
        async with wired() as wire:
            for features, fits in ((LINUX | F_RING_PACKED, False), (LINUX, True)):
                await wire.negotiate(features)
                with area(4096) as fd:
                    assert await take(wire, fd, 4096, 0, 1, 200) == 0
                wire.tell(10, vring(0, 0))
                await wire.plug()
                await wire.set_up(num=128, base=0x80008000 if not fits else 0)
                assert await wire.acked(18, vring(0, 1)) == 0
                assert (wire.queue.inflight is not None) == fits
                wire.tell(39, u64(0))

    uvloop.run(run())


def test_a_new_region_replaces_the_old_and_a_reset_ends_it() -> None:
    """
    At each start of a driver the region is another; one that is reset has none.

    Source: traces, 6: "The area is made anew at each driver start".
    """

    async def replace() -> None:
        async with wired() as wire:
            await wire.negotiate()
            for _ in range(2):
                answer, (fd,) = await wire.ask_for_fds(31, asked())
                wire.tell(32, answer, [fd])
            await go(wire)
            assert mappings(OURS) == 1
            with area(1 << 16) as other:
                assert await take(wire, other, 1 << 16, 0, 1, 128) == errno.EBUSY
            assert mappings("theirs") == 0
            wire.tell(34)
            await go(wire)
            assert mappings(OURS) == 0
            assert wire.queue.inflight is None

    uvloop.run(replace())


def test_a_stopped_ring_goes_on_with_its_region() -> None:
    """A guest that is paused has nothing in flight, and the region stays for when it goes on."""

    async def pause() -> None:
        async with wired() as wire:
            await wire.negotiate()
            answer, (fd,) = await wire.ask_for_fds(31, asked())
            wire.tell(32, answer, [fd])
            await go(wire)
            tracked = wire.queue.inflight
            await wire.ask(11, vring(0, 0))
            wire.tell(39, u64(0))
            await go(wire)
            assert wire.queue.inflight == tracked

    uvloop.run(pause())


def test_a_resumed_driver_is_served_write_through(caplog: pytest.LogCaptureFixture) -> None:
    """
    A process that gets a region it did not make does not know the write cache switch.

    Every write is stable then, and the config space says so, until the driver sets it.

    Source: traces, 6.
    """

    async def resume() -> None:
        async with wired(disk=Memory(1 << 20)) as wire:
            await wire.negotiate(LINUX | 1 << 11)
            assert wire.device.config.writeback
            with area(1 << 16) as fd:
                assert await take(wire, fd, 1 << 16, 0, 1, 128) == 0
            await go(wire)
            assert ("blk", True) in wire.queue.calls
            wire.queue.calls.clear()
            assert (await wire.ask(24, struct.pack("=III", 32, 1, 0) + b"\0"))[12:] == b"\0"
            assert await wire.acked(25, struct.pack("=III", 32, 1, 0) + b"\1") == 0
            assert ("blk", False) in wire.queue.calls

    uvloop.run(resume())
    assert caplog.text.count("until it sets its write cache again") == 1


def test_a_driver_that_begins_here_is_not_doubted() -> None:
    """A region that was asked for on this connection has no past, so the switch is at its start."""

    async def begin() -> None:
        async with wired() as wire:
            await wire.negotiate(LINUX | 1 << 11)
            answer, (fd,) = await wire.ask_for_fds(31, asked())
            wire.tell(32, answer, [fd])
            await go(wire)
            assert ("blk", False) in wire.queue.calls

    uvloop.run(begin())


def test_a_process_that_has_served_knows_the_switch() -> None:
    """A region that comes back to a process that lives on changes nothing of the switch."""

    async def back() -> None:
        async with wired() as wire:
            await wire.start()
            wire.device.config.writeback = True
            wire.tell(39, u64(0))
            with area(1 << 16) as fd:
                assert await take(wire, fd, 1 << 16, 0, 1, 128) == 0
            assert wire.device.config.writeback

    uvloop.run(back())


def test_nothing_is_left_of_a_region_that_was_not_taken() -> None:
    """A front-end that asks for regions and leaves has cost a descriptor, and none at the end."""

    async def leave() -> None:
        before = open_fds()
        async with wired(FakeEngine()) as wire:
            await wire.negotiate()
            for _ in range(5):
                _, (fd,) = await wire.ask_for_fds(31, asked())
                os.close(fd)
        assert open_fds() <= before
        assert mappings(OURS) == 0

    uvloop.run(leave())
