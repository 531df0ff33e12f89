"""
The IOTLB suite: every way an IOMMU and its front-end may behave, on either data plane.

Source: CONFIDENTIAL.md, 6.3 and 3.4 to 3.6.  tests/guest/test_iommu_against_rogue.py shows that
these guests catch back-ends which remember too much or heed too little.
"""

import random
import time
from typing import Literal

import pytest
from server_kit.serving import Serving
from server_kit.translated import (
    BLOCK,
    FLUSHES,
    MIB,
    PAGE,
    SECTORS,
    SIZE,
    attach,
    blocks,
    is_data,
    is_ring,
    ring,
    table,
    write_all,
)

from vhostblk.disk.memory import Memory
from vhostblk.guest import (
    Framing,
    Guest,
    GuestMemory,
    IommuOptions,
    QueueOptions,
    Region,
    Request,
    wire,
)
from vhostblk.guest.errors import DeadlineError
from vhostblk.guest.iommu import Answer, Flush
from vhostblk.spec.vhost_user import IotlbType
from vhostblk.spec.virtio_blk import Status


@pytest.mark.parametrize("entries", ["page", "run"])
@pytest.mark.parametrize("flush", FLUSHES)
def test_every_request_with_every_flush(
    server: Serving, flush: Flush, entries: Literal["page", "run"]
) -> None:
    """
    Strict ATS by pages, by aligned powers of two, and everything at once with a size that wraps.

    The IOVAs of each request are those of the one before it, with other pages behind them.
    """
    with attach(server, IommuOptions(flush=flush, entries=entries), serial="behind") as guest:
        for i, size in enumerate((512, PAGE, 5 * PAGE)):
            data = random.Random(i).randbytes(size)
            guest.write(128 * i, data)
            guest.memory.allocate(PAGE)  # so that no buffer gets the pages of one before it
            assert guest.read(128 * i, size) == data
        guest.flush()
        assert guest.get_id() == b"behind"
        assert guest.run(Request.read(1 << 40, 512)).status == Status.IOERR
        assert table(guest).invalidations > 12


@pytest.mark.slow
@pytest.mark.parametrize("flush", FLUSHES)
def test_long_requests(server: Serving, flush: Flush) -> None:
    """A buffer of 1 MiB is 256 translations; direct, and through an indirect table."""
    with attach(server, flush) as guest:
        data = random.Random(1).randbytes(MIB)
        guest.write(0, data, framing=Framing(indirect=True))
        assert guest.read(0, MIB, framing=Framing(indirect=False)) == data


@pytest.mark.parametrize("flush", FLUSHES)
def test_load_on_two_queues(server: Serving, flush: Flush) -> None:
    """What one queue's requests unmap disturbs none of the other's."""
    with attach(server, flush, queues=2) as guest:
        data = blocks(6)
        write_all(guest, data)
        for _ in range(2):
            tickets = [
                guest.submit(Request.read(SECTORS * i, BLOCK), queue=i % 2)
                for i in range(len(data))
            ]
            assert [guest.wait(ticket).data for ticket in tickets] == data


@pytest.mark.parametrize("identity", [True, False], ids=["passthrough", "mapped"])
def test_wide_rights(server: Serving, *, identity: bool) -> None:
    """The front-end tells of more rights than were asked for, as QEMU often does."""
    with attach(server, IommuOptions(identity=identity)) as guest:
        table(guest).answers = lambda _: "wide"
        data = blocks(4)
        write_all(guest, data)
        assert [guest.read(SECTORS * i, BLOCK) for i in range(4)] == data
        assert bool(table(guest).invalidations) is not identity


# ---- answers that are no help ----------------------------------------------------------------


def test_read_only_entry(server: Serving) -> None:
    """
    What the device may only read it reads; a request that would write there fails, and only that.

    A device write through the entry would be seen: the buffer would not be as the driver left it.
    """
    with attach(server) as guest:
        data = blocks(1)[0]
        guest.write(0, data)
        table(guest).answers = lambda one: "read-only" if is_data(one) else "prompt"
        guest.write(SECTORS, data)
        failed = guest.run(Request.read(0, BLOCK))
        assert failed.status == Status.IOERR
        assert failed.data == bytes([0xA5]) * BLOCK
        table(guest).answers = lambda _: "prompt"
        assert guest.read(SECTORS, BLOCK) == data


def test_read_only_used_ring(server: Serving) -> None:
    """A ring the device may not write does not run, until it may."""
    with attach(server, miss_seconds=0.2) as guest:
        guest.write(0, bytes(BLOCK))
        iommu = table(guest)
        iommu.answers = lambda one: "read-only" if is_ring(one) else "prompt"
        iommu.invalidate(ring(guest).used, PAGE)
        ticket = guest.submit(Request.read(0, BLOCK))
        with pytest.raises(DeadlineError):
            guest.wait(ticket, timeout=0.05)
        assert guest.queues[0].split.used_idx() == 1
        iommu.answers = lambda _: "prompt"
        iommu.tell(ring(guest).used)
        assert guest.wait(ticket).data == bytes(BLOCK)


@pytest.mark.parametrize("answer", ["late", "slow"])
@pytest.mark.parametrize("after", [0.03, 0.4], ids=["in time", "too late"])
def test_late_update(server: Serving, answer: Answer, after: float) -> None:
    """
    Within the deadline a late answer is waited for; beyond it the request fails.

    What comes too late harms nothing: the next request at the same IOVA is right.
    """
    with attach(server, miss_seconds=0.2) as guest:
        data = blocks(2)
        write_all(guest, data)
        iommu = table(guest)
        iommu.delay = after
        iommu.answers = lambda one: answer if is_data(one) else "prompt"
        got = guest.run(Request.read(0, BLOCK))
        assert got.status == (Status.OK if after < 0.2 else Status.IOERR)
        assert got.data == (data[0] if after < 0.2 else bytes([0xA5]) * BLOCK)
        iommu.answers = lambda _: "prompt"
        assert guest.read(SECTORS, BLOCK) == data[1]


@pytest.mark.parametrize("flush", ["page", "global"])
def test_no_answer_while_another_queue_works(server: Serving, flush: Flush) -> None:
    """The deadline is the chain's own: another queue's invalidations do not put it off."""
    with attach(server, flush, queues=2, miss_seconds=0.15) as guest:
        write_all(guest, blocks(1))
        iommu = table(guest)
        iommu.answers = lambda one: "silent" if is_data(one) else "prompt"
        ticket = guest.submit(Request.read(0, BLOCK))
        before = time.monotonic()
        while time.monotonic() - before < 0.6 and not ticket.done:
            guest.read(0, 512, queue=1)
            guest.queues[0].reap()
        assert ticket.done
        assert guest.wait(ticket).status == Status.IOERR


@pytest.mark.parametrize("flush", FLUSHES)
def test_answers_of_all_kinds_at_once(server: Serving, flush: Flush) -> None:
    """Each request gets what its own buffer deserves, whatever the others get."""
    kinds: list[Answer] = ["prompt", "late", "negative", "read-only", "wide", "slow"]
    with attach(server, flush, size=128, miss_seconds=2.0) as guest:
        data = blocks(len(kinds) * 2)
        write_all(guest, data)
        iommu = table(guest)
        iommu.delay = 0.005
        chosen: dict[int, Answer] = {}
        iommu.answers = lambda one: (
            chosen.setdefault(one.iova, kinds[len(chosen) % len(kinds)])
            if is_data(one)
            else "prompt"
        )
        tickets = [guest.submit(Request.read(SECTORS * i, BLOCK)) for i in range(len(data))]
        at = [ticket.shown[1].gpa // PAGE * PAGE for ticket in tickets]
        got = [guest.wait(ticket) for ticket in tickets]
        assert sorted(chosen.values()) == sorted(kinds * 2)
        for iova, block, one in zip(at, data, got, strict=True):
            refused = chosen[iova] in {"negative", "read-only"}
            assert one.status == (Status.IOERR if refused else Status.OK)
            assert one.data == (bytes([0xA5]) * BLOCK if refused else block)


# ---- starts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reboot", "stop and start"])
def test_nothing_old_is_used_after_a_restart(server: Serving, how: str) -> None:
    """
    The front-end invalidates nothing while the device stands, and IOVAs get other pages.

    An UPDATE that comes while it stands (QEMU answers a MISS it finds late) is not believed either.
    """
    with attach(server) as guest:
        iommu = table(guest)
        for turn in range(2):
            data = blocks(3, seed=turn)
            write_all(guest, data)
            assert [guest.read(SECTORS * i, BLOCK) for i in range(3)] == data
            if how == "reboot":
                guest.reboot()
                continue
            guest.stop()
            guest.frontend.iotlb(stale(guest))
            guest.start()
        assert iommu.refused == 0


def stale(guest: Guest) -> wire.Iotlb:
    """Return an UPDATE that has all IOVAs lead to pages of nobody's."""
    uva = guest.memory.mappings[0].uva + 48 * MIB
    return wire.Iotlb((1 << 32) - 64 * PAGE, 64 * PAGE, uva, 3, IotlbType.UPDATE)


@pytest.mark.parametrize("identity", [False, True], ids=["mapped", "passthrough"])
def test_firmware_then_system(server: Serving, *, identity: bool) -> None:
    """
    The firmware's addresses lead to themselves; then the same numbers are the system's IOVAs.

    They are taken from the pages that the firmware's rings are in, so that they collide.  Of the
    queue that the firmware leaves alone the front-end tells IOVA 0.
    """
    path = server.add(Memory(SIZE), num_queues=2)
    options = IommuOptions(top=15 * PAGE, identity=identity)
    with (
        GuestMemory([Region(0, 4 * MIB)]) as memory,
        Guest.connect(path, queues=2, memory=memory, iommu=options) as guest,
    ):
        data = blocks(4)
        write_all(guest, data)
        with guest.firmware_phase():
            assert [guest.read(SECTORS * i, BLOCK) for i in range(4)] == data
            guest.write(0, data[1])
        assert guest.read(0, BLOCK, queue=1) == data[1]
        assert [guest.read(SECTORS * i, BLOCK, queue=i % 2) for i in range(1, 4)] == data[1:]


def test_stop_in_the_middle_of_misses(server: Serving) -> None:
    """GET_VRING_BASE waits for no answer, wherever it comes; afterwards all requests are served."""
    with attach(server) as guest:
        data = blocks(4)
        write_all(guest, data)
        iommu = table(guest)
        iommu.delay = 0.01
        iommu.answers = lambda one: "slow" if is_data(one) else "prompt"
        tickets = [guest.submit(Request.read(SECTORS * i, BLOCK)) for i in range(len(data))]
        for _ in range(4):
            before = time.monotonic()
            guest.stop()
            assert time.monotonic() - before < 0.5
            guest.start()
            guest.queues[0].notify()
        assert [guest.wait(ticket).data for ticket in tickets] == data


def test_memory_is_plugged_behind_an_iommu(server: Serving) -> None:
    """Rings and chains go on in the new table; what is unplugged is not used any more."""
    with attach(server) as guest:
        data = blocks(4)
        write_all(guest, data)
        for turn in range(2):
            region = Region((1 << 32) + turn * 64 * MIB, 2 * MIB)
            tickets = [guest.submit(Request.read(SECTORS * i, BLOCK)) for i in range(4)]
            guest.add_region(region)
            assert [guest.wait(ticket).data for ticket in tickets] == data
            tickets = [guest.submit(Request.read(SECTORS * i, BLOCK)) for i in range(4)]
            assert [guest.wait(ticket).data for ticket in tickets] == data
            guest.remove_region(region.gpa)
            assert [guest.read(SECTORS * i, BLOCK) for i in range(4)] == data


def test_large_ring_behind_an_iommu(server: Serving) -> None:
    """A ring of 1024 has parts of several pages, each translated by itself, in any order."""
    path = server.add(Memory(SIZE), queue_size=1024)
    with Guest.connect(path, queue_size=1024, iommu="page") as guest:
        data = blocks(3)
        write_all(guest, data)
        used = ring(guest).used
        for page in range(0, 3 * PAGE, PAGE):
            table(guest).invalidate(used + page, PAGE)
            assert [guest.read(SECTORS * i, BLOCK) for i in range(3)] == data
        guest.reboot(queue_options=QueueOptions(size=16))
        assert guest.read(0, BLOCK) == data[0]
