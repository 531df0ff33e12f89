import asyncio
import os
import socket
import struct

import pytest
import uvloop
from frontend_bytes import message, u64, vring
from server_kit.engine import FakeEngine
from server_kit.left import mappings, open_fds
from server_kit.wire import REGION_SIZE, Wire, memfd, region, wired

from vhostblk.engine.api import Counters, Fault
from vhostblk.server.session import HANDLERS
from vhostblk.spec.vhost_user import Request


def test_messages_behind_a_drain_wait() -> None:
    """Replies are ordered: what comes behind GET_VRING_BASE is answered after it."""

    async def order() -> None:
        async with wired(drain_seconds=5) as wire:
            await wire.start()
            wire.queue.may_drain.clear()
            wire.tell(11, vring(0, 0))
            wire.tell(1)
            await wire.nothing_comes()
            wire.queue.may_drain.set()
            assert (await wire.reply())[0] == 11
            assert (await wire.reply())[0] == 1

    uvloop.run(order())


def test_a_session_that_trickles_in_is_the_same() -> None:
    """Messages that arrive byte by byte, descriptors with the first, are messages."""

    async def trickle() -> None:
        async with wired() as wire:
            await wire.negotiate()
            with memfd(REGION_SIZE) as fd:
                whole = message(37, region(), flags=9)
                socket.send_fds(wire.sock, [whole[:1]], [fd])
                for byte in whole[1:]:
                    await asyncio.sleep(0)
                    wire.sock.send(bytes([byte]))
            assert await wire.reply() == (37, u64(0))
            assert mappings() == 1

    uvloop.run(trickle())


def test_a_broken_queue_waits_for_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once with its why; memory and descriptors may change, only a restart runs it."""

    async def broken() -> None:
        async with wired() as wire:
            await wire.start()
            wire.queue.break_ring(Fault("head out of range", 3, 700))
            wire.queue.calls.clear()
            assert await wire.plug(gpa=REGION_SIZE) == 0
            assert await wire.acked(13, u64(0), [os.eventfd(0)]) == 0
            assert ("run",) not in wire.queue.calls
            await wire.ask(11, vring(0, 0))
            await wire.set_up()
            assert wire.queue.running

    uvloop.run(broken())
    assert caplog.text.count("queue 0 is broken: head out of range (index 3, value 0x2bc)") == 1


def test_what_is_not_offered_is_refused() -> None:
    """
    Foreign messages, postcopy and device state among them, get a non-zero ack.

    So do a dirty log, an inflight region and an IOTLB message that are none, and unknown numbers.

    libvhost-user answers 0 to what it does not know; that is a lie.
    """
    payloads = {
        6: struct.pack("=QQ", 4096, 0),
        19: u64(0),
        20: u64(1500),
        22: bytes(32),
        23: vring(0, 0),
        26: b"any",
        27: u64(1),
        28: b"",
        29: b"",
        30: b"",
        32: bytes(24),
        33: b"",
        35: vring(0, 0),
        41: bytes(16),
        42: vring(0, 0),
        43: b"",
        99: b"",
    }

    async def refuse() -> None:
        async with wired() as wire:
            await wire.negotiate()
            for number, payload in payloads.items():
                fds = [os.eventfd(0)] if number in {6, 32, 33, 42} else []
                assert await wire.acked(number, payload, fds) != 0, number

    uvloop.run(refuse())


async def _bad_size(wire: Wire) -> None:
    wire.tell(8, vring(0, 0))


async def _bad_header(wire: Wire) -> None:
    wire.sock.send(struct.pack("=III", 1, 7, 0))


async def _bad_payload(wire: Wire) -> None:
    wire.tell(8, b"short")


async def _too_many_fds(wire: Wire) -> None:
    wire.tell(1, fds=[os.eventfd(0) for _ in range(9)])


async def _noise(wire: Wire) -> None:
    wire.sock.send(bytes(range(256)))


@pytest.mark.parametrize("crime", [_bad_size, _bad_header, _bad_payload, _too_many_fds, _noise])
def test_what_cannot_be_refused_ends_the_connection(crime: object) -> None:
    """A front-end that errs and waits for no answer is hung up on; nothing of it stays."""

    async def end() -> None:
        before = open_fds()
        async with wired() as wire:
            await wire.start()
            await crime(wire)  # type: ignore[operator]
            assert await wire.gone()
            await wire.closed()
            assert wire.queue.closed
            assert mappings() == 0
        assert open_fds() <= before

    uvloop.run(end())


@pytest.mark.parametrize("first", range(1, 52, 10))
def test_a_message_cut_short_leaves_nothing(first: int, caplog: pytest.LogCaptureFixture) -> None:
    """A front-end that dies behind any byte of a message leaves not even its descriptors."""
    whole = message(37, region())

    async def cut(length: int) -> None:
        before = open_fds()
        async with wired() as wire:
            await wire.start()
            with memfd(REGION_SIZE) as fd:
                socket.send_fds(wire.sock, [whole[:length]], [fd])
        assert mappings() == 0
        assert open_fds() <= before

    lengths = range(first, min(first + 10, len(whole)))
    for length in lengths:
        uvloop.run(cut(length))
    assert caplog.text.count("in the middle of a message") == len(lengths)


def test_a_front_end_that_dies_before_its_answer_leaves_nothing() -> None:
    """What it has asked for is done all the same, and an answer that nobody takes ends it."""

    async def die(number: int, payload: bytes) -> None:
        before, regions = open_fds(), mappings("vhostblk-inflight")
        async with wired() as wire:
            await wire.start()
            wire.tell(number, payload, ack=True)
        assert mappings() == 0
        assert mappings("vhostblk-inflight") <= regions  # another test's may still go
        assert open_fds() <= before

    config = struct.pack("=III", 0, 60, 0) + bytes(60)
    for number, payload in (
        (1, b""),
        (11, vring(0, 0)),
        (24, config),
        (31, struct.pack("=QQHHI", 0, 0, 2, 128, 0)),
        (34, b""),
    ):
        uvloop.run(die(number, payload))


def test_descriptors_of_a_refused_message_are_closed() -> None:
    """Whatever a message brings and nobody takes is closed."""

    async def refused() -> None:
        async with wired() as wire:
            await wire.negotiate()
            before = open_fds()
            assert await wire.acked(6, struct.pack("=QQ", 4096, 0), [os.eventfd(0)]) != 0
            assert await wire.acked(38, region(), [os.eventfd(0)]) != 0
            assert await wire.acked(12, u64(77), [os.eventfd(0)]) != 0
            assert open_fds() == before

    uvloop.run(refused())


def test_nothing_is_left_of_a_connection() -> None:
    """After a disconnect with a running ring: no descriptor, no mapping, every queue closed."""

    async def leave() -> None:
        before = open_fds()
        engine = FakeEngine()
        async with wired(engine) as wire:
            await wire.start()
            ours, theirs = socket.socketpair()
            assert await wire.acked(21, fds=[theirs.detach()]) == 0
            assert await wire.acked(21, fds=[os.eventfd(0)]) != 0  # no socket
            assert await wire.acked(13, u64(0), [os.eventfd(0)]) == 0
        assert [queue.closed for queue in engine.queues] == [True]
        ours.close()
        assert mappings() == 0
        assert engine.guarded == 0
        assert open_fds() <= before

    uvloop.run(leave())


def test_a_bug_of_ours_ends_one_connection_loudly(caplog: pytest.LogCaptureFixture) -> None:
    """An exception nobody expects closes the session, with its traceback in the log."""

    async def bug() -> None:
        async with wired() as wire:
            await wire.negotiate()
            wire.device.config.device = None  # type: ignore[assignment]
            wire.tell(24, struct.pack("=III", 0, 8, 0) + bytes(8))
            assert await wire.gone()

    uvloop.run(bug())
    assert "a bug of ours" in caplog.text
    assert "Traceback" in caplog.text


def test_every_message_is_logged_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    """With the messages' logger at DEBUG each one is a line with the device and its fields."""
    caplog.set_level("DEBUG", logger="vhostblk.messages")

    async def talk() -> None:
        async with wired(name="vm0") as wire:
            await wire.negotiate()
            wire.tell(8, vring(1, 128))
            await wire.done()

    uvloop.run(talk())
    assert "vm0: SET_VRING_NUM index=1 num=128" in caplog.messages


def test_every_request_has_a_decision() -> None:
    """Each message of the standard is either in the table or refused by its name."""
    handled = {getattr(kind, "request", None) for kind in HANDLERS}
    foreign = {19, 20, 23, 26, 27, 28, 29, 30, 33, 35, 41, 42, 43}
    assert handled | {Request(number) for number in foreign} == set(Request)
    assert not handled & foreign


def test_requests_that_failed_are_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """What a data plane failed without a word is in the log when the front-end is gone."""

    async def fail() -> None:
        async with wired() as wire:
            await wire.start()
            wire.queue.done = Counters(writes=5, errors=3)

    uvloop.run(fail())
    assert "queue 0: 3 requests ended with an I/O error" in caplog.text
