"""Migration; the order of messages is QEMU's, and some back-ends mark badly."""

import struct
from pathlib import Path

import pytest
from guest_peers.marking import PAGE, marking
from guest_peers.qsd import SIZE, noise, storage_daemon
from guest_peers.rogue import CONTENT
from guest_peers.scripted import listening, offers

from vhostblk.guest import (
    DEFAULT_FEATURES,
    Framing,
    Guest,
    GuestError,
    GuestMemory,
    Protection,
    Region,
    Request,
    UnmarkedError,
)
from vhostblk.spec import vhost_user as vu
from vhostblk.spec import virtio_ring as vr

FULL = bytes([CONTENT])
OFFERED = offers(DEFAULT_FEATURES | vu.VHOST_F_LOG_ALL | vr.F_RING_PACKED, 0x1B22B)
CONNECT = [1, 15, 16, 17, 36, 21, 3, 1, 13, 14, 13, 14]
START = [2, 40, 39, 31, 32, 13, 13, 2, 40, 37, 8, 10, 9, 12, 8, 10, 9, 12, 18, 18, 40, 39]
LOG = [6, 2, 40, 9, 9]
STOP = [18, 18, 11, 11, 39]


def test_the_order_is_qemus(tmp_path: Path) -> None:
    """
    Source: log, features, addresses with F_LOG, stop.  Destination: connect early, start late.

    Source: traced from QEMU 10.2.
    """
    with (
        listening(tmp_path / "a", OFFERED) as a,
        listening(tmp_path / "b", OFFERED) as b,
        Guest.connect(tmp_path / "a", queues=2) as guest,
    ):
        guest.frontend.get_status()
        before = len(a[0].seen)
        report = guest.migrate_to(tmp_path / "b")
        guest.frontend.get_status()
    assert report.bases == {0: 7, 1: 7}
    there = a[0].seen[before:]
    assert [m.request for m in there] == [*LOG, *STOP]
    assert {m.request for m in there if m.need_reply} == {2, 9, 18}
    assert struct.unpack("=Q", there[1].payload)[0] == DEFAULT_FEATURES | vu.VHOST_F_LOG_ALL
    assert [struct.unpack("=IIQQQQ", m.payload)[1] for m in there[3:5]] == [1, 1]
    assert [m.request for m in b[0].seen][:-1] == [*CONNECT, *START]
    bases = [struct.unpack("=II", m.payload)[1] for m in b[0].seen if m.request == 10]
    assert bases == [7, 7]


def test_what_the_device_writes_gets_there(tmp_path: Path) -> None:
    """With a request of which nobody has looked at the result; the guest goes on, elsewhere."""
    with (
        marking(tmp_path / "a"),
        marking(tmp_path / "b"),
        Guest.connect(tmp_path / "a") as guest,
    ):
        old = guest.memory.mappings[0].fd
        tickets = []

        def read() -> None:
            tickets.append(guest.submit(Request.read(0, 10000)))

        report = guest.migrate_to(tmp_path / "b", meanwhile=read, passes=4)
        assert [guest.wait(ticket).data for ticket in tickets] == [FULL * 10000] * 4
        assert guest.read(0, 512) == FULL * 512
        assert guest.memory.mappings[0].fd != old
        assert not {hex(p) for p in report.unchanged}
    assert len(report.passes) == 5
    assert report.bases == {0: 4}


@pytest.mark.parametrize("forgets", ["data", "status", "used"])
def test_what_is_not_marked_is_found(tmp_path: Path, forgets: str) -> None:
    """A page of data, of a status or of the used ring that is written and not marked."""
    pages: set[int] = set()
    with (
        marking(tmp_path / "a", lambda page: [] if page in pages else [page]),
        marking(tmp_path / "b"),
        GuestMemory([Region(0, 64 * PAGE)]) as memory,
        Guest.connect(tmp_path / "a", memory=memory) as guest,
    ):

        def read() -> None:
            header, data, status = (memory.allocate(PAGE, align=PAGE) for _ in range(3))
            used = guest.queues[0].ring.addresses.used
            pages.add({"data": data, "status": status, "used": used}[forgets] // PAGE)
            framing = Framing(at=[header, data, status])
            guest.run(Request.read(0, 512), framing=framing)

        with pytest.raises(UnmarkedError, match="1 pages were written and not marked") as caught:
            guest.migrate_to(tmp_path / "b", meanwhile=read, passes=1)
        assert {page // PAGE for page in caught.value.pages} == pages


def test_marks_without_a_write_are_counted(tmp_path: Path) -> None:
    """A page that did not change is told of, and nothing fails."""
    with (
        marking(tmp_path / "a", lambda page: [page, 40]),
        marking(tmp_path / "b"),
        GuestMemory([Region(0, 64 * PAGE)]) as memory,
        Guest.connect(tmp_path / "a", memory=memory) as guest,
    ):
        report = guest.migrate_to(tmp_path / "b", meanwhile=lambda: void(guest.read(0, 512)))
    assert report.unchanged == {40 * PAGE}


def test_marks_outside_of_ram_are_an_error(tmp_path: Path) -> None:
    """A page that is no RAM cannot have been written."""
    with (
        marking(tmp_path / "a", lambda page: [page, 20]),
        marking(tmp_path / "b"),
        GuestMemory([Region(0, 16 * PAGE), Region(32 * PAGE, 16 * PAGE)]) as memory,
        Guest.connect(tmp_path / "a", memory=memory) as guest,
        pytest.raises(GuestError, match="page 0x14000, which is no RAM"),
    ):
        guest.migrate_to(tmp_path / "b", meanwhile=lambda: void(guest.read(0, 512)))


def test_a_cancelled_migration_stops_logging(tmp_path: Path) -> None:
    """LOG_ALL is taken back before the flags of the rings, and the guest stays where it is."""
    with (
        listening(tmp_path / "a", OFFERED) as a,
        listening(tmp_path / "b", OFFERED),
        Guest.connect(tmp_path / "a", queues=2) as guest,
    ):
        guest.frontend.get_status()
        before = len(a[0].seen)
        with pytest.raises(ZeroDivisionError):
            guest.migrate_to(tmp_path / "b", meanwhile=lambda: void(1 // 0))
        guest.frontend.get_status()
    assert [m.request for m in a[0].seen[before:]][:-1] == [*LOG, 2, 40, 9, 9]


@pytest.mark.parametrize("lacks", ["LOG_SHMFD", "LOG_ALL"])
def test_a_back_end_that_cannot_log_blocks_it(tmp_path: Path, lacks: str) -> None:
    """The words are QEMU's."""
    answers = offers(DEFAULT_FEATURES, 0x1B22B) if lacks == "LOG_ALL" else dict(OFFERED)
    if lacks == "LOG_SHMFD":
        answers[vu.Request.GET_PROTOCOL_FEATURES] = struct.pack("=Q", 0x1B229)
    with (
        listening(tmp_path / "a", answers),
        listening(tmp_path / "b", answers),
        Guest.connect(tmp_path / "a") as guest,
        pytest.raises(GuestError, match=f"lacks VHOST_.*{lacks} feature"),
    ):
        guest.migrate_to(tmp_path / "b")


def test_protected_memory_cannot_be_copied(tmp_path: Path) -> None:
    """What the host sees of it is not what the guest wrote."""
    with (
        listening(tmp_path / "a", OFFERED),
        GuestMemory([Region(0, 64 * PAGE)], mode=Protection(mode="snp")) as memory,
        Guest.connect(tmp_path / "a", memory=memory, start=False) as guest,
        pytest.raises(GuestError, match="cannot be mirrored"),
    ):
        guest.migrate_to(tmp_path / "a")


def test_between_two_storage_daemons(tmp_path: Path) -> None:
    """Others' back-ends mark what they write, and go on at the base of the first."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with (
        storage_daemon(tmp_path / "a", SIZE) as a,
        storage_daemon(tmp_path / "b", SIZE) as b,
        Guest.connect(a.path, queues=2) as guest,
    ):
        data = noise(9216)
        guest.write(0, data)
        b.image.write_bytes(a.image.read_bytes())

        def read() -> None:
            assert guest.read(0, 8192) == data[:8192]
            assert guest.read(1, 8192, queue=1) == data[512 : 512 + 8192]

        report = guest.migrate_to(b.path, meanwhile=read)
        assert report.bases == {0: 4, 1: 3}
        read()
        assert guest.stop() == {0: 5, 1: 4}


def void(_: object) -> None:
    """Forget it."""
