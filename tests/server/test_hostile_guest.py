import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from server_kit.serving import Serving, until

from vhostblk.disk.memory import Memory
from vhostblk.guest.blk import UNWRITTEN_STATUS
from vhostblk.guest.guest import Guest
from vhostblk.guest.hostile import (
    INDIRECT_CASES,
    REQUEST_CASES,
    RING_CASES,
    Case,
    Outcome,
    Trap,
    attempt,
    data,
    flicker,
    header,
    raw_chain,
    status,
)
from vhostblk.guest.queue import Queue
from vhostblk.guest.ring import Descriptor
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
CASES = (*RING_CASES, *INDIRECT_CASES, *REQUEST_CASES)
WHY = {
    "avail idx too far ahead": r"avail index .* value 0x101",
    "avail idx goes back": r"avail index .* value 0xffff",
    "head is the ring's size": r"head out of range \(index 0, value 0x100",
    "head is 65535": r"head out of range \(index 0, value 0xffff",
    "next is out of range": r"next descriptor out of range .* value 0xffff",
    "descriptor that follows itself": r"longer than its table .* value 0x100",
    "two descriptors in a loop": r"longer than its table .* value 0x100",
    "status outside RAM": r"status byte .* value 0x",
    "loop in an indirect table": r"longer than its table .* value 0x2",
    "next out of an indirect table": r"next descriptor out of range .* value 0x2",
    "indirect table in an indirect table": r"malformed indirect table \(index 0, value 0x30",
    "INDIRECT and NEXT together": r"malformed indirect table .* value 0x30",
    "indirect table of 0 bytes": r"malformed indirect table .* value 0x0\)",
    "indirect table of 47 bytes": r"malformed indirect table .* value 0x2f",
    "indirect table over the end of RAM": r"malformed indirect table .* value 0xfffffff0",
    "indirect table outside RAM": r"indirect table that may not be read .* value 0x",
}
"""What the log says of a case that ends BROKEN, behind the queue's number."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_driver_gets_what_was_decided(
    case: Case, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Each trap gets the outcome of the table; other queues serve on, and so does this one restarted.

    Source: ARCHITECTURE.md, "What a bad guest gets, decided once".
    """
    guest = vhost_user_guest(server.add(Memory(1 << 20), num_queues=2), queues=2)
    assert attempt(guest.queues[0], case) is case.expected
    guest.write(0, b"other queue".ljust(512), queue=1)
    if case.expected is Outcome.BROKEN:
        line = rf"queue 0 is broken: .*{WHY[case.name]}.*waits for a restart"
        assert until(lambda: re.search(line, caplog.text) is not None)
        assert caplog.text.count("is broken") == 1
        guest.reboot()
    assert guest.read(0, 512, queue=0) == b"other queue".ljust(512)


def test_a_header_that_changes_while_it_is_read(server: Serving, vhost_user_guest: Connect) -> None:
    """A request type that flickers between IN and an unknown one gets the answer to either."""
    guest = vhost_user_guest(server.add(Memory(1 << 20)))
    queue = guest.queues[0]
    spot, buffer, last = header(queue), data(queue), status(queue)
    with flicker(guest.memory, spot.gpa, b"\xff\xff\0\0", b"\0\0\0\0"):
        for _ in range(40):
            queue.wait([queue.submit([spot, buffer, last])], 5)
            assert guest.memory.read(last.gpa, 1)[0] in {Status.OK, Status.UNSUPP}
    assert guest.read(0, 512) == bytes(512)


def test_a_mended_ring_goes_on_where_it_stood(server: Serving, vhost_user_guest: Connect) -> None:
    """GET_VRING_BASE names the entry that was no entry; written anew, it is served."""
    guest = vhost_user_guest(server.add(Memory(1 << 20)), queue_size=16, base=30)
    queue = guest.queues[0]
    guest.write(0, b"before".ljust(512))
    queue.ring.publish(0xFFFF)
    queue.notify()
    queue.wait_broken(5)
    assert guest.stop() == {0: 31}
    queue.split.set_avail_idx(31)
    guest.start()
    assert guest.read(0, 512) == b"before".ljust(512)


@dataclass(frozen=True)
class Spot:
    """
    A field of the indirect table of an honest read that does not stay what it is.

    Args:
        name: In words.
        descriptor: Which: 0 is the header, 1 the data, 2 the status.
        offset: Of the field in the descriptor.
        lie: What it is half of the time; None: an address outside of memory.
        outcomes: What may come of it.
    """

    name: str
    descriptor: int
    offset: int
    lie: bytes | None
    outcomes: set[Outcome]


OK, IOERR, GIVEN_BACK, BROKEN = Outcome.OK, Outcome.IOERR, Outcome.GIVEN_BACK, Outcome.BROKEN
SPOTS = (
    Spot("where the header is", 0, 0, None, {OK, IOERR}),
    Spot("where the data are", 1, 0, None, {OK, IOERR}),
    Spot("how long the data are", 1, 8, b"\xff\xff\xff\xff", {OK, IOERR}),
    Spot("whether the data are written", 1, 12, b"\1\0", {OK}),
    Spot("where the status is", 2, 0, None, {OK, BROKEN}),
    Spot("whether the status is written", 2, 12, b"\0\0", {OK, GIVEN_BACK}),
    Spot("what comes behind the header", 0, 14, b"\3\0", {OK, BROKEN}),
    Spot("whether anything comes behind the status", 2, 12, b"\3\0", {OK, BROKEN}),
)


@pytest.mark.parametrize("spot", SPOTS, ids=lambda spot: spot.name)
def test_a_table_that_changes_while_it_is_read(
    spot: Spot, server: Serving, vhost_user_guest: Connect
) -> None:
    """Whatever a descriptor was when it was read is what happens; the other queue serves on."""
    guest = vhost_user_guest(server.add(Memory(1 << 20), num_queues=2), queues=2)
    queue, memory = guest.queues[0], guest.memory
    parts = header(queue), data(queue), status(queue)
    table = memory.allocate(3 * vr.DESC_SIZE)
    for i, part in enumerate(parts):
        flags = (vr.DESC_F_NEXT if i < 2 else 0) | (vr.DESC_F_WRITE if i else 0)
        descriptor = Descriptor(part.gpa, part.length, flags, i + 1 if i < 2 else 0)
        memory.write(table + i * vr.DESC_SIZE, descriptor.pack())

    def ask(queue: Queue) -> Trap:
        memory.write(parts[2].gpa, bytes([UNWRITTEN_STATUS]))
        sent = raw_chain(queue, Descriptor(table, 3 * vr.DESC_SIZE, vr.DESC_F_INDIRECT))
        return Trap(sent.ticket, parts[2].gpa)

    lie = memory.hole().to_bytes(8, "little") if spot.lie is None else spot.lie
    gpa = table + spot.descriptor * vr.DESC_SIZE + spot.offset
    case = Case(spot.name, OK, ask)
    outcome = OK
    with flicker(memory, gpa, lie, memory.read(gpa, len(lie))):
        for _ in range(30):
            outcome = attempt(queue, case)
            assert outcome in spot.outcomes
            if outcome is BROKEN:
                break
    guest.write(0, b"other queue".ljust(512), queue=1)
    if outcome is BROKEN:
        guest.reboot()
    assert guest.read(0, 512) == b"other queue".ljust(512)


def test_an_index_that_jumps_to_and_fro(server: Serving, vhost_user_guest: Connect) -> None:
    """An avail index that is now and then too far ahead breaks its queue, and nothing else."""
    guest = vhost_user_guest(server.add(Memory(1 << 20), num_queues=2), queues=2)
    queue = guest.queues[0]
    spot = queue.ring.addresses.avail + 2
    guest.write(0, b"other queue".ljust(512), queue=1)
    with flicker(guest.memory, spot, b"\0\x80", b"\0\0"):
        while not queue.is_broken():  # a server that polls may break it before the first kick
            queue.notify()
            guest.write(512, b"again".ljust(512), queue=1)
    guest.reboot()
    assert guest.read(0, 512) == b"other queue".ljust(512)
