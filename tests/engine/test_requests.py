"""What a request does, whichever engine serves it."""

import errno
import struct
from dataclasses import replace

import pytest
from engine.driver import PENDING, Lane, pattern
from engine.harness import BLK, SECTORS, Rig

from vhostblk.engine.api import Op
from vhostblk.spec.virtio_blk import RequestType, Status

IN, OUT = RequestType.IN, RequestType.OUT


def ranges(*parts: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QII", *part) for part in parts)


def test_read_gives_what_is_stored(rig: Rig, lane: Lane) -> None:
    """IN fills the guest's buffer and says how much was written."""
    rig.disk[4096:8192] = pattern(4096)
    asked = lane.read(8, 4096)
    rig.pump()
    assert (asked.status, asked.used) == (Status.OK, 4097)
    assert asked.data == rig.disk[4096:8192]


def test_write_stores_what_is_given(rig: Rig, lane: Lane) -> None:
    """OUT reaches the disk; only the status is written into the guest."""
    content = pattern(1024)
    asked = lane.write(3, content)
    rig.pump()
    assert (asked.status, asked.used) == (Status.OK, 1)
    assert rig.disk[1536:2560] == content
    assert [job.fua for job in rig.jobs] == [False]


def test_views_have_the_direction_of_the_request(rig: Rig, lane: Lane) -> None:
    """READ gives writable views, WRITE read-only ones, without a copy."""
    lane.read()
    lane.write()
    rig.step()
    read, write = rig.take(lane)
    assert [view.readonly for view in read.views] == [False]
    assert [view.readonly for view in write.views] == [True]
    assert (read.length, write.length) == (512, 512)
    for job in (read, write):
        rig.finish(lane, job)


def test_flush_is_passed_on(rig: Rig, lane: Lane) -> None:
    """FLUSH is a job of the disk's, whatever sector it names."""
    asked = lane.ask(RequestType.FLUSH, 77)
    rig.pump()
    assert (asked.status, asked.used) == (Status.OK, 1)
    assert [job.op for job in rig.jobs] == [Op.FLUSH]


@pytest.mark.parametrize("room", [5, 20, 64])
def test_get_id_gives_the_serial(rig: Rig, lane: Lane, room: int) -> None:
    """The serial is NUL-padded to 20 bytes, cut where there is less room; no disk is asked."""
    asked = lane.ask(RequestType.GET_ID, room=room)
    rig.pump()
    assert asked.data == (b"harness" + bytes(13)).ljust(room, b"\xdd")[:room]
    assert (asked.status, asked.used) == (Status.OK, min(room, 20) + 1)
    assert rig.jobs == []


def test_discard_goes_range_by_range(rig: Rig, lane: Lane) -> None:
    """Several segments are one job after the other; the request ends with the last."""
    rig.disk[:] = b"x" * len(rig.disk)
    asked = lane.ask(RequestType.DISCARD, out=ranges((8, 8, 0), (100, 4, 0), (200, 0, 0)))
    rig.step()
    first = rig.take(lane)
    assert [(job.op, job.offset, job.length) for job in first] == [(Op.DISCARD, 4096, 4096)]
    rig.finish(lane, first[0])
    rig.step()
    assert asked.status == PENDING
    second = rig.take(lane)
    assert [(job.op, job.offset, job.length) for job in second] == [(Op.DISCARD, 51200, 2048)]
    rig.finish(lane, second[0])
    rig.step()
    assert (asked.status, asked.used) == (Status.OK, 1)


def test_discard_stops_at_the_first_failure(rig: Rig, lane: Lane) -> None:
    """A range that fails fails the request, and the ranges behind it are left alone."""
    rig.fail = lambda _: errno.EIO
    asked = lane.ask(RequestType.DISCARD, out=ranges((8, 8, 0), (100, 4, 0)))
    rig.pump()
    assert asked.status == Status.IOERR
    assert len(rig.jobs) == 1


def test_write_zeroes_carries_unmap(rig: Rig, lane: Lane) -> None:
    """UNMAP reaches a disk that may use it."""
    asked = lane.ask(RequestType.WRITE_ZEROES, out=ranges((0, 8, 1), (8, 8, 0)))
    rig.pump()
    assert asked.status == Status.OK
    assert [(job.op, job.unmap) for job in rig.jobs] == [
        (Op.WRITE_ZEROES, True),
        (Op.WRITE_ZEROES, False),
    ]


def test_unmap_is_dropped_where_the_disk_makes_no_holes(rig: Rig) -> None:
    """There it is a hint that is ignored."""
    lane = rig.lane(blk=replace(BLK, may_unmap=False))
    asked = lane.ask(RequestType.WRITE_ZEROES, out=ranges((0, 8, 1)))
    rig.pump()
    assert asked.status == Status.OK
    assert [job.unmap for job in rig.jobs] == [False]


def test_writethrough_makes_every_change_stable(rig: Rig) -> None:
    """
    OUT, DISCARD and WRITE_ZEROES are stable before their status; reads need not be.

    Spec: virtio 1.3, 5.2.6.2.
    """
    lane = rig.lane(writethrough=True)
    lane.write()
    lane.ask(RequestType.DISCARD, out=ranges((0, 8, 0)))
    lane.ask(RequestType.WRITE_ZEROES, out=ranges((0, 8, 0)))
    lane.read()
    rig.pump()
    assert sorted((job.op, job.fua) for job in rig.jobs) == [
        (Op.READ, False),
        (Op.WRITE, True),
        (Op.DISCARD, True),
        (Op.WRITE_ZEROES, True),
    ]


@pytest.mark.parametrize(
    ("kind", "sector", "out", "room"),
    [
        (IN, SECTORS, b"", 512),
        (IN, SECTORS - 1, b"", 1024),
        (IN, (1 << 64) - 1, b"", 512),
        (IN, 1 << 55, b"", 512),
        (IN, 0, b"", 511),
        (IN, SECTORS + 1, b"", 0),
        (OUT, SECTORS, b"x" * 512, 0),
        (OUT, 0, b"x" * 513, 0),
        (RequestType.DISCARD, 0, b"", 0),
        (RequestType.DISCARD, 0, bytes(15), 0),
        (RequestType.DISCARD, 0, bytes(16 * 17), 0),
        (RequestType.DISCARD, 0, ranges((0, 2049, 0)), 0),
        (RequestType.DISCARD, 0, ranges((0, 8, 0), (SECTORS - 1, 2, 0)), 0),
        (RequestType.WRITE_ZEROES, 0, ranges((SECTORS + 1, 0, 0)), 0),
        (RequestType.WRITE_ZEROES, 0, ranges((1 << 63, 8, 0)), 0),
    ],
)
def test_bad_requests_are_io_errors(  # noqa: PLR0913 - a request has four parts
    rig: Rig, lane: Lane, *, kind: int, sector: int, out: bytes, room: int
) -> None:
    """Out of range, misaligned, too long or too many: IOERR, and the disk never hears of it."""
    asked = lane.ask(kind, sector, out=out, room=room)
    rig.pump()
    assert (asked.status, asked.used) == (Status.IOERR, 1)
    assert asked.data == b"\xdd" * room
    assert rig.jobs == []
    assert lane.queue.fault() is None


@pytest.mark.parametrize(
    ("kind", "out"),
    [
        (2, b""),
        (10, b""),
        (14, ranges((0, 8, 0))),
        (0x7FFFFFFF, b""),
        (RequestType.DISCARD, ranges((0, 8, 1))),
        (RequestType.DISCARD, ranges((0, 8, 2))),
        (RequestType.WRITE_ZEROES, ranges((0, 8, 0), (0, 8, 3))),
    ],
)
def test_unknown_things_are_unsupported(rig: Rig, lane: Lane, kind: int, out: bytes) -> None:
    """Types and flags we do not know are answered so, and the disk never hears of it."""
    asked = lane.ask(kind, out=out)
    rig.pump()
    assert (asked.status, asked.used) == (Status.UNSUPP, 1)
    assert rig.jobs == []
    assert lane.queue.counters().unsupported == 1


@pytest.mark.parametrize("read_only", [False, True])
def test_what_is_not_offered_is_unsupported(rig: Rig, *, read_only: bool) -> None:
    """DISCARD and WRITE_ZEROES need a disk that can, of a read-only one as of any other."""
    lane = rig.lane(blk=replace(BLK, discard=False, write_zeroes=False, read_only=read_only))
    for kind in (RequestType.DISCARD, RequestType.WRITE_ZEROES):
        asked = lane.ask(kind, out=ranges((0, 8, 0)))
        rig.pump()
        assert asked.status == Status.UNSUPP


@pytest.mark.parametrize("kind", [OUT, RequestType.DISCARD, RequestType.WRITE_ZEROES])
def test_nothing_changes_a_read_only_disk(rig: Rig, kind: int) -> None:
    """Every kind of write is an I/O error; reads, flushes and the serial go on."""
    lane = rig.lane(blk=replace(BLK, read_only=True))
    asked = lane.ask(kind, out=ranges((0, 8, 0)) * 32 if kind == OUT else ranges((0, 8, 0)))
    fine = [lane.read(), lane.ask(RequestType.FLUSH), lane.ask(RequestType.GET_ID, room=20)]
    rig.pump()
    assert asked.status == Status.IOERR
    assert [one.status for one in fine] == [Status.OK] * 3


def test_the_legacy_barrier_means_nothing(rig: Rig, lane: Lane) -> None:
    """Bit 31 of the type is masked."""
    asked = lane.ask(OUT | 1 << 31, out=b"b" * 512)
    rig.pump()
    assert asked.status == Status.OK
    assert rig.disk[:512] == b"b" * 512


@pytest.mark.parametrize("kind", [IN, OUT])
def test_a_transfer_of_nothing_succeeds(rig: Rig, lane: Lane, kind: int) -> None:
    """No data, nothing done, status OK."""
    asked = lane.ask(kind)
    rig.pump()
    assert (asked.status, asked.used) == (Status.OK, 1)
    assert rig.jobs == []


@pytest.mark.parametrize("kind", [IN, OUT])
def test_a_disk_error_is_an_io_error(rig: Rig, lane: Lane, kind: int) -> None:
    """A failed read writes one byte, the status; the queue goes on."""
    rig.fail = lambda _: errno.ENOSPC
    asked = lane.ask(kind, out=b"x" * 512 if kind == OUT else b"", room=512 if kind == IN else 0)
    rig.pump()
    assert (asked.status, asked.used) == (Status.IOERR, 1)
    rig.fail = lambda _: 0
    again = lane.read()
    rig.pump()
    assert again.status == Status.OK


def test_counters_say_what_was_done(rig: Rig, lane: Lane) -> None:
    """Each kind is counted, with its bytes."""
    lane.read(0, 1024)
    lane.write(0, b"x" * 512)
    lane.ask(RequestType.FLUSH)
    rig.pump()
    lane.ask(RequestType.DISCARD, out=ranges((0, 8, 0)))
    lane.ask(RequestType.WRITE_ZEROES, out=ranges((0, 8, 0)))
    lane.ask(RequestType.GET_ID, room=20)
    lane.read(SECTORS)
    rig.pump()
    seen = lane.queue.counters()
    assert (seen.reads, seen.writes, seen.flushes) == (1, 1, 1)
    assert (seen.discards, seen.write_zeroes, seen.get_ids) == (1, 1, 1)
    assert (seen.bytes_read, seen.bytes_written) == (1024, 512)
    assert (seen.errors, seen.unsupported, seen.malformed) == (1, 0, 0)
    assert (seen.in_flight, seen.dead) == (0, 0)
    assert seen.calls >= 2


def test_several_queues_are_served(rig: Rig) -> None:
    """Requests of four queues are done, each in its own ring."""
    lanes = [rig.lane() for _ in range(4)]
    asked = [lane.write(i, bytes([i]) * 512) for i, lane in enumerate(lanes)]
    rig.pump()
    assert [one.status for one in asked] == [Status.OK] * 4
    assert rig.disk[:2048] == b"".join(bytes([i]) * 512 for i in range(4))
