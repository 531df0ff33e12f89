"""
Which pages of guest memory the back-end touches: those of rings and descriptors, and no other.

By userfaultfd, which sees every touch in any kind of guest; test_confidential_guest.py has the same
proof by hole map.  Each misdeed that a back-end could commit is shown to be seen.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import auditing
import pytest
import running
from auditing import Audited
from guest_peers.misdeeds import MAP_FLAGS, MISDEEDS
from proc import mapped, status

from vhostblk.guest import Guest, GuestMemory, Range, Region, Request
from vhostblk.guest.bounce import Bounced
from vhostblk.guest.confidential import Kind
from vhostblk.guest.dma import Direct, pages_of
from vhostblk.guest.iommu import Flush
from vhostblk.guest.layout import MIB, PAGE
from vhostblk.guest.shape import RingAddresses, RingShape
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
SIZE = 4 * MIB
SLOW = pytest.mark.slow
DISKS = ["memory", pytest.param("file", marks=SLOW), pytest.param("direct", marks=SLOW)]
KINDS = ["bounced", pytest.param("sev", marks=SLOW), "snp", pytest.param("tdx", marks=SLOW)]
BAD = ["next_page", "far_write", "write_back", "register", "map_populate"]
REST = [pytest.param(one, marks=SLOW) for one in (*MISDEEDS, *MAP_FLAGS) if one not in BAD]


@pytest.fixture(scope="module", params=["native", "reference"])
def engine(request: pytest.FixtureRequest) -> str:
    """Return the name of a data plane."""
    name: str = request.param
    return name


@pytest.fixture(scope="module", params=DISKS)
def server(
    request: pytest.FixtureRequest, engine: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Audited]:
    """Run a server under an auditor: copying itself, through the page cache, and around it."""
    image = tmp_path_factory.mktemp("disk") / "image"
    image.write_bytes(bytes(SIZE))
    disk = {
        "memory": f"memory:{SIZE}",
        "file": str(image),
        "direct": f"file:{image},cache=none",
    }[request.param]
    with auditing.serve("--engine", engine, disk) as running:
        yield running


def memory_of(kind: Kind) -> GuestMemory:
    """Make 16 MiB of the kind's memory."""
    return GuestMemory([Region(0, 16 * MIB)], mode="plain" if kind == "bounced" else kind)


def load(guest: Guest) -> None:
    """Do everything a driver does, and some things it should not."""
    for i in range(0, 12, 4):
        guest.write(16 * i, bytes([i]) * (512 << i))
        guest.read(16 * i, 512 << i)
    guest.get_id()
    guest.flush()
    guest.discard([Range(0, 8)])
    guest.write_zeroes([Range(8, 8)])
    assert guest.run(Request.read(1 << 40, 512)).status == Status.IOERR


@pytest.mark.parametrize("kind", KINDS)
def test_only_rings_and_descriptors_are_touched(
    kind: Kind, server: Audited, vhost_user_guest: Connect
) -> None:
    """In any kind of guest: the pages of the rings and of the descriptors that were posted."""
    with memory_of(kind) as memory:
        guest = vhost_user_guest(server.socket, memory=memory, confidential=kind)
        load(guest)
        assert isinstance(guest.dma, Bounced)
        touched = server.auditor.touched(memory)
        assert touched <= guest.dma.exposed
        assert len(touched) > 32, "the longest write alone"
        guest.close()


@pytest.fixture
def exposed(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Return the pages that a driver without bounce buffers names, as they come to be."""
    pages: set[int] = set()
    show, ring = Direct.map, Direct.allocate_ring

    def map_(self: Direct, gpa: int, length: int, *, writable: bool, cpu: int = 0) -> int:
        pages.update(pages_of(gpa, length))
        return show(self, gpa, length, writable=writable, cpu=cpu)

    def allocate_ring(self: Direct, shape: RingShape) -> RingAddresses:
        made = ring(self, shape)
        pages.update(pages_of(made.desc, shape.desc_bytes))
        pages.update(pages_of(made.avail, shape.avail_bytes))
        pages.update(pages_of(made.used, shape.used_bytes))
        return made

    monkeypatch.setattr(Direct, "map", map_)
    monkeypatch.setattr(Direct, "allocate_ring", allocate_ring)
    return pages


@pytest.mark.parametrize("iommu", [None, "page", "global"])
def test_also_of_an_ordinary_guest_and_behind_an_iommu(
    iommu: Flush | None, server: Audited, exposed: set[int], vhost_user_guest: Connect
) -> None:
    """Where buffers lie anywhere in memory, and where the device knows them by IOVA only."""
    with memory_of("bounced") as memory:
        guest = vhost_user_guest(server.socket, memory=memory, iommu=iommu)
        load(guest)
        touched = server.auditor.touched(memory)
        assert touched <= exposed
        assert len(touched) > 32, "the longest write alone"
        guest.close()


def test_what_may_be_read_is_not_written(server: Audited, vhost_user_guest: Connect) -> None:
    """Pages of data for the disk are read, those for the guest are written; no page is both."""
    with memory_of("bounced") as memory:
        guest = vhost_user_guest(server.socket, memory=memory, confidential="bounced")
        assert isinstance(guest.dma, Bounced)
        for request, written in (
            (Request.write(0, b"x" * 65536), False),
            (Request.read(0, 65536), True),
        ):
            ticket = guest.submit(request)
            data = next(buffer for buffer in ticket.shown if buffer.length == 65536)
            pages = set(pages_of(data.gpa, data.length))
            assert guest.wait(ticket).status == Status.OK
            assert pages <= server.auditor.touched(memory)
            assert pages & server.auditor.written(memory) == (pages if written else set())
        guest.close()


def test_a_page_is_seen_again_once_it_was_forgotten(
    server: Audited, vhost_user_guest: Connect
) -> None:
    """The auditor can begin anew at any time; the guest notices nothing."""
    with memory_of("snp") as memory:
        guest = vhost_user_guest(server.socket, memory=memory, confidential="snp")
        guest.write(0, b"y" * 4096)
        server.auditor.forget()
        assert server.auditor.touched(memory) == frozenset()
        assert guest.read(0, 4096) == b"y" * 4096
        assert isinstance(guest.dma, Bounced)
        assert frozenset() < server.auditor.touched(memory) <= guest.dma.exposed
        guest.close()


@pytest.mark.parametrize("kind", ["bounced", pytest.param("snp", marks=SLOW)])
@pytest.mark.parametrize("misdeed", [*BAD, *REST])
def test_a_bad_back_end_is_caught(misdeed: str, kind: Kind, vhost_user_guest: Connect) -> None:
    """One page too many, all memory registered or populated, a store where none may be."""
    with auditing.rogue(misdeed) as rogue, memory_of(kind) as memory:
        guest = vhost_user_guest(rogue.socket, memory=memory, confidential=kind)
        assert isinstance(guest.dma, Bounced)
        ticket = guest.submit(Request.write(0, bytes(65536)))
        data = next(buffer for buffer in ticket.shown if buffer.length == 65536)
        pages = set(pages_of(data.gpa, data.length))
        guest.wait(ticket)
        strays = rogue.auditor.touched(memory) - guest.dma.exposed
        stores = rogue.auditor.written(memory) & pages
        count = {"good": 0, "write_back": 0, "next_page": 1, "far_read": 1, "far_write": 1}
        assert len(strays) == count.get(misdeed, 16 * MIB // PAGE - len(guest.dma.exposed))
        assert bool(stores) == (misdeed in {"write_back", "register", "pin"})
        guest.close()
    assert rogue.auditor.strays == []


# ---- without an auditor ---------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "reference"], indirect=True)
def test_nothing_is_locked_pinned_dumped_or_inherited(
    engine: str, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """
    After requests of every kind, as the kernel counts it; CONFIDENTIAL.md 5.1.

    dd: not in a core dump; dc: not in a child; lo: locked; hg: huge pages wanted.
    """
    path = tmp_path / "s"
    with running.serving("--engine", engine, "memory:4M", socket=path) as process:
        with memory_of("snp") as memory:
            guest = vhost_user_guest(path, memory=memory, confidential="snp")
            load(guest)
            assert status(process.pid, "VmLck") == 0
            assert status(process.pid, "VmPin") == 0
            ours = [one for one in mapped(process.pid) if "memfd:fake-guest" in one.name]
            assert ours
            for one in ours:
                assert {"sh", "dd", "dc"} <= one.flags
                assert not {"lo", "hg"} & one.flags
                assert one.fields["Locked"] == "0 kB"
            guest.close()
        running.end(process)


def test_a_back_end_that_pins_is_counted(vhost_user_guest: Connect) -> None:
    """The kernel's count sees registered buffers: the negative control of the test above."""
    with auditing.rogue("pin") as rogue, memory_of("snp") as memory:
        guest = vhost_user_guest(rogue.socket, memory=memory, confidential="snp")
        guest.read(0, 512)
        assert status(rogue.pid, "VmPin") == 16 * MIB // 1024
        guest.close()
