"""Whole guests behind an IOMMU, on either data plane."""

import random

import pytest
from server_kit.serving import Serving

from vhostblk.disk.memory import Memory
from vhostblk.guest import Framing, Guest, Request
from vhostblk.guest.confidential import Kind
from vhostblk.guest.errors import BrokenQueueError
from vhostblk.guest.iommu import Flush, Mapped
from vhostblk.spec.virtio_blk import Status

SECTOR = 512
PAGE = 4096
MIB = 1 << 20
FLUSHES = pytest.mark.parametrize("flush", ["page", "global"])


def connect(server: Serving, flush: Flush = "page", **options: object) -> Guest:
    """Serve a memory disk to a guest behind an IOMMU."""
    path = server.add(Memory(4 * MIB), **options)
    return Guest.connect(path, queue_size=64, iommu=flush)


def is_data(one: Mapped) -> bool:
    """Whether this is a buffer of a request of more than a page, no header, status or ring."""
    return one.length > 2 * PAGE and one.perm != 3


@FLUSHES
def test_what_is_written_is_read(server: Serving, flush: Flush) -> None:
    """Rings and buffers by IOVA, all of them used again and again for other pages."""
    with connect(server, flush) as guest:
        assert guest.iommu is not None
        rng = random.Random(7)
        for sector in range(0, 240, 24):
            data = rng.randbytes(24 * SECTOR)
            guest.write(sector, data)
            assert guest.read(sector, len(data)) == data
        assert guest.iommu.misses > 20
        assert guest.iommu.invalidations > 20


@FLUSHES
def test_many_requests_at_once(server: Serving, flush: Flush) -> None:
    """Each misses, none is lost, and what is unmapped while others fly disturbs none."""
    with connect(server, flush) as guest:
        rng = random.Random(8)
        blocks = [rng.randbytes(3 * PAGE) for _ in range(12)]
        written = [guest.submit(Request.write(24 * i, data)) for i, data in enumerate(blocks)]
        assert [guest.wait(one).status for one in written] == [Status.OK] * len(blocks)
        read = [guest.submit(Request.read(24 * i, 3 * PAGE)) for i in range(len(blocks))]
        assert [guest.wait(one).data for one in read] == blocks


def test_indirect_tables_go_through_the_iommu(server: Serving) -> None:
    """First the table misses, then what it names; a large buffer misses in one go."""
    with connect(server) as guest:
        data = random.Random(9).randbytes(40 * PAGE)
        framing = Framing(indirect=True)
        guest.write(0, data, framing=framing)
        assert guest.read(0, len(data), framing=framing) == data


def test_nothing_is_believed_after_a_restart(server: Serving) -> None:
    """The next driver uses the same IOVAs for other pages, and nobody says what was unmapped."""
    with connect(server) as guest:
        for turn in range(3):
            data = bytes([turn + 1]) * (4 * PAGE)
            guest.write(8 * turn, data)
            assert guest.read(8 * turn, len(data)) == data
            guest.memory.allocate(PAGE)  # the next rings are elsewhere
            guest.reboot()


@pytest.mark.parametrize("answer", ["negative", "silent"])
def test_request_whose_buffer_is_unmapped_fails_alone(server: Serving, answer: str) -> None:
    """IOERR for it, at once or after the deadline; the next one is served."""
    with connect(server, miss_seconds=0.1) as guest:
        assert guest.iommu is not None
        guest.iommu.answers = lambda one: answer if is_data(one) else "prompt"  # type: ignore[assignment,return-value]
        assert guest.run(Request.read(0, 4 * PAGE)).status == Status.IOERR
        assert guest.run(Request.write(0, bytes(4 * PAGE))).status == Status.IOERR
        guest.iommu.answers = lambda _: "prompt"
        assert guest.read(0, 4 * PAGE) == bytes(4 * PAGE)


def test_late_update_is_waited_for(server: Serving) -> None:
    """The ack comes first, the translation behind it."""
    with connect(server) as guest:
        assert guest.iommu is not None
        guest.iommu.answers = lambda _: "late"
        guest.write(0, b"late" * 4096)
        assert guest.read(0, 4 * 4096) == b"late" * 4096


def test_unmapped_status_breaks_the_queue(server: Serving) -> None:
    """It cannot be told that the request failed: completing it could read as success."""
    with connect(server) as guest:
        assert guest.iommu is not None
        guest.iommu.answers = lambda one: "prompt" if one.perm == 3 else "negative"
        with pytest.raises(BrokenQueueError):
            guest.flush()


def test_stop_while_a_chain_waits(server: Serving) -> None:
    """GET_VRING_BASE waits for no translation; the request is served at the next start."""
    with connect(server) as guest:
        assert guest.iommu is not None
        guest.write(0, b"before" + bytes(4 * PAGE - 6))
        guest.iommu.answers = lambda one: "silent" if is_data(one) else "prompt"
        ticket = guest.submit(Request.read(0, 4 * PAGE))
        bases = guest.stop()
        assert bases == {0: 1}
        guest.iommu.answers = lambda _: "prompt"
        guest.start()
        guest.queues[0].notify()
        assert guest.wait(ticket).data.startswith(b"before")


@pytest.mark.parametrize("kind", ["bounced", "sev", "snp", "tdx"])
def test_translated_and_bounced(server: Serving, kind: Kind) -> None:
    """Both at once: the device sees slots, and those through the IOMMU."""
    path = server.add(Memory(4 * MIB))
    with Guest.connect(path, confidential=kind, iommu="page") as guest:
        data = random.Random(10).randbytes(64 * SECTOR)
        guest.write(0, data)
        assert guest.read(0, len(data)) == data


def test_firmware_then_system_behind_an_iommu(server: Serving) -> None:
    """What the firmware had mapped is not believed when the system starts."""
    path = server.add(Memory(4 * MIB))
    with Guest.connect(path, confidential="bounced", iommu="page") as guest:
        guest.write(0, b"x" * 4096)
        with guest.firmware_phase():
            assert guest.read(0, 4096) == b"x" * 4096
        assert guest.read(0, 4096) == b"x" * 4096


def test_guest_is_killed_while_a_chain_waits(server: Serving) -> None:
    """The next one is served."""
    path = server.add(Memory(4 * MIB))
    with Guest.connect(path, iommu="page") as guest:
        assert guest.iommu is not None
        guest.iommu.answers = lambda one: "silent" if is_data(one) else "prompt"
        guest.submit(Request.read(0, 4 * PAGE))
    with Guest.connect(path, iommu="page") as guest:
        assert guest.read(0, 4 * PAGE) == bytes(4 * PAGE)
