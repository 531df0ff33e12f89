import struct

import pytest
import uvloop
from frontend_bytes import u64, vring
from server_kit.left import mappings
from server_kit.wire import wired

from vhostblk.disk.api import DiskInfo
from vhostblk.disk.memory import Memory

ON = struct.pack("=III", 32, 1, 0) + b"\1"
OFF = struct.pack("=III", 32, 1, 0) + b"\0"


def test_get_config_echoes_what_was_asked() -> None:
    """The reply to QEMU's question has 12 + 57 bytes; the capacity comes first."""

    async def ask() -> None:
        async with wired() as wire:
            await wire.negotiate()
            answer = await wire.ask(24, struct.pack("=III", 0, 57, 0) + bytes(57))
            assert answer[:12] == struct.pack("=III", 0, 57, 0)
            assert len(answer) == 12 + 57
            assert int.from_bytes(answer[12:20], "little") == (1 << 20) // 512

    uvloop.run(ask())


def test_the_write_cache_goes_off_behind_earlier_writes() -> None:
    """
    From 1 to 0: drain, flush, and every later write is stable; reset brings 1 back.

    Spec: virtio 1.3, 5.2.6.2.
    """

    async def switch() -> None:
        async with wired() as wire:
            await wire.start()
            wire.queue.calls.clear()
            assert await wire.acked(25, OFF) == 0
            assert wire.queue.calls == [("drained",), ("blk", True), ("run",)]
            wire.queue.calls.clear()
            assert await wire.acked(25, ON) == 0
            assert wire.queue.calls == [("parked",), ("blk", False), ("run",)]
            assert await wire.acked(25, OFF) == 0
            assert not wire.device.config.writeback
            wire.tell(34)
            await wire.done()
            assert wire.device.config.writeback

    uvloop.run(switch())


class Unstable:
    """A disk whose flush fails."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=1 << 20)

    def read(self, offset: int, views: object) -> None: ...

    def write(self, offset: int, views: object) -> None: ...

    def flush(self) -> None:
        if not self.fixed:
            raise OSError(5, "no")

    fixed = False


def test_a_cache_that_cannot_be_emptied_stays_on() -> None:
    """Where earlier writes cannot be made stable the switch stays, and the ring goes on."""
    disk = Unstable()

    async def stay() -> None:
        async with wired(disk=disk) as wire:
            await wire.start()
            assert await wire.acked(25, OFF) != 0
            assert wire.device.config.writeback
            assert ("blk", True) not in wire.queue.calls
            assert wire.queue.running
            disk.fixed = True

    uvloop.run(stay())


def test_a_paused_guest_keeps_its_write_cache_switch() -> None:
    """SET_STATUS 0 comes when QEMU pauses, too: what the guest has set must not be undone."""

    async def pause() -> None:
        async with wired() as wire:
            await wire.start()
            assert await wire.acked(25, OFF) == 0
            wire.tell(39, u64(0))
            await wire.done()
            assert not wire.device.config.writeback

    uvloop.run(pause())


def test_the_guest_may_write_nothing_else() -> None:
    """SET_CONFIG of any other field, and a switch of 2, are refused."""

    async def write() -> None:
        async with wired(disk=Memory(1 << 20)) as wire:
            await wire.negotiate()
            assert await wire.acked(25, struct.pack("=III", 0, 8, 0) + bytes(8)) != 0
            assert await wire.acked(25, OFF[:12] + b"\2") != 0

    uvloop.run(write())


def test_status_is_what_was_set_until_a_reset() -> None:
    """
    QEMU reads, ors and writes the status; 0 stops the rings and keeps the memory.

    Spec: vhost-user, "VHOST_USER_SET_STATUS".
    """

    async def status() -> None:
        async with wired() as wire:
            await wire.start()
            wire.tell(39, u64(0xF))
            assert await wire.ask(40) == u64(0xF)
            assert await wire.acked(39, u64(0x100)) != 0
            wire.tell(39, u64(0))
            assert await wire.ask(40) == u64(0)
            assert not wire.queue.running
            assert mappings() == 1

    uvloop.run(status())


@pytest.mark.parametrize("number", [4, 34])
def test_a_reset_may_come_thrice(number: int) -> None:
    """system_reset sends RESET_DEVICE three times; rings stop, memory stays, a start works."""

    async def reset() -> None:
        async with wired() as wire:
            await wire.start()
            for _ in range(3):
                wire.tell(number)
            await wire.done()
            assert not wire.queue.running
            assert mappings() == 1
            await wire.negotiate()
            await wire.set_up()
            assert await wire.acked(18, vring(0, 1)) == 0
            assert wire.queue.running

    uvloop.run(reset())


def test_a_ring_is_asked_for_its_base_behind_a_reset() -> None:
    """
    QEMU 7.2 pauses a guest by SET_STATUS 0, then GET_VRING_BASE: the answer is where it stood.

    Spec: vhost-user, "VHOST_USER_GET_VRING_BASE".
    """

    async def pause() -> None:
        async with wired() as wire:
            await wire.start(base=7)
            wire.tell(39, u64(0))
            assert await wire.ask(11, vring(0, 0)) == vring(0, 7)

    uvloop.run(pause())
