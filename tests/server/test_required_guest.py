"""Where a guest's requests may go, mode by mode: what it gets, and what was not touched."""

import time
from collections.abc import Callable
from typing import Literal, get_args

import pytest
from server_kit.serving import PATIENCE, Serving, until

from vhostblk.disk.memory import Memory
from vhostblk.guest.bounce import Bounced, SwiotlbOptions
from vhostblk.guest.confidential import Confidential as Machine
from vhostblk.guest.confidential import Kind
from vhostblk.guest.errors import BrokenQueueError, GuestError, NackError
from vhostblk.guest.guest import Guest
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.hostile import (
    Case,
    Outcome,
    Trap,
    attempt,
    chain,
    data,
    header,
    raw_chain,
    status,
)
from vhostblk.guest.negotiate import DEFAULT_FEATURES
from vhostblk.guest.queue import Queue
from vhostblk.guest.ring import Descriptor, indirect_table
from vhostblk.guest.shape import Buffer
from vhostblk.memory.ranges import OnViolation
from vhostblk.server.policy import Confidential, parse_shared_ranges
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.virtio_blk import RequestType

Connect = Callable[..., Guest]
Mode = Literal["off", "auto", "warn", "fail", "break"]
Part = Literal["nothing", "read", "written", "border", "header", "status", "table"]
"""What of a request is outside of the pool."""
SIZE = 1 << 20
CANARY = b"\xa5"
STORED = b"\x3c" * 1024
SMALL = SwiotlbOptions(nslabs=512)
OK, IOERR, BROKEN = Outcome.OK, Outcome.IOERR, Outcome.BROKEN


def pool(kind: Kind = "bounced") -> range:
    """Return where the pool of a fresh guest of this kind is."""
    machine = Machine(kind=kind, swiotlb=SMALL)
    with machine.make_memory() as memory:
        made = machine.make_dma(memory)
        assert isinstance(made, Bounced)
        span = made.pools[0]
        made.close()
    return span


def options(mode: Mode, span: range | None = None) -> dict[str, object]:
    if mode in {"off", "auto"}:
        return {"confidential": Confidential(mode)}
    where = pool() if span is None else span
    return {
        "confidential": Confidential.REQUIRE,
        "shared_ranges": parse_shared_ranges(f"{where.start:#x}-{where.stop:#x}"),
        "on_violation": OnViolation(mode),
    }


def inside(guest: Guest, buffer: Buffer) -> Buffer:
    """Return the buffer's copy in the pool."""
    gpa = guest.dma.map(buffer.gpa, buffer.length, writable=buffer.writable)
    return Buffer(gpa, buffer.length, buffer.writable)


def make_request(guest: Guest, part: Part) -> tuple[Callable[[Queue], Trap], Buffer]:
    """
    Return what submits a request of 1024 bytes, and its data.

    Only *part* of it is outside of the pool.
    """
    queue = guest.queues[0]
    kind = RequestType.OUT if part == "written" else RequestType.IN
    parts = {
        "header": header(queue, kind),
        "data": data(queue, len(STORED), writable=kind == RequestType.IN),
        "status": status(queue),
    }
    outside = {"read": "data", "written": "data", "border": "data"}.get(part, part)
    guest.memory.write(parts["data"].gpa, CANARY * len(STORED))
    if part == "border":
        # Half of it in the page below the pool, which is nobody's.
        parts["data"] = Buffer(pool().start - 512, len(STORED), writable=True)
        guest.memory.write(parts["data"].gpa, CANARY * len(STORED))
    shown = [one if name == outside else inside(guest, one) for name, one in parts.items()]

    def direct(queue: Queue) -> Trap:
        return chain(queue, *shown)

    def indirect(queue: Queue) -> Trap:
        table = indirect_table(shown)
        gpa = queue.memory.allocate(len(table))
        queue.memory.write(gpa, table)
        trap = raw_chain(queue, Descriptor(gpa, len(table), vr.DESC_F_INDIRECT))
        return Trap(trap.ticket, shown[-1].gpa)

    return indirect if part == "table" else direct, shown[1]


EXPECTED: dict[str, dict[str, Outcome]] = {
    "fail": {
        "read": IOERR,
        "written": IOERR,
        "border": IOERR,
        "header": IOERR,
        "status": BROKEN,
        "table": BROKEN,
    },
    "break": dict.fromkeys(("read", "written", "border", "header", "status", "table"), BROKEN),
}
"""Everything else is served."""


@pytest.mark.parametrize("part", get_args(Part))
@pytest.mark.parametrize("mode", get_args(Mode))
def test_what_a_request_gets(
    mode: Mode, part: Part, server: Serving, vhost_user_guest: Connect
) -> None:
    """
    A request of which one part is outside of the pool, in every mode; bytes are compared.

    Whatever becomes of it, the other queue, another device, and the queue after its restart serve.
    """
    disk = Memory(SIZE)
    guest = vhost_user_guest(
        server.add(disk, num_queues=2, **options(mode)),
        queues=2,
        confidential=Machine(kind="bounced", swiotlb=SMALL),
    )
    other = vhost_user_guest(server.add(Memory(SIZE)))
    guest.write(0, STORED)
    expected = EXPECTED.get(mode, {}).get(part, OK)
    submit, place = make_request(guest, part)
    assert attempt(guest.queues[0], Case(part, expected, submit)) is expected
    read = expected is OK and part != "written"
    found = guest.memory.read(place.gpa, place.length)
    assert found == (STORED if read else CANARY * len(STORED))
    kept = CANARY * len(STORED) if expected is OK and part == "written" else STORED
    assert guest.read(0, len(STORED), queue=1) == kept
    assert other.read(0, 512) == bytes(512)
    if expected is BROKEN:
        assert guest.queues[0].split.used_idx() == guest.stop()[0], "nothing came back of it"
        guest.reboot()
        guest.reboot()  # the pool of every second boot is where it was at first
    assert guest.read(0, len(STORED)) == kept


@pytest.mark.parametrize("kind", ["snp", "tdx"])
@pytest.mark.parametrize("part", ["read", "written", "header", "status", "table"])
@pytest.mark.parametrize("mode", ["fail", "break"])
def test_no_private_page_is_touched(
    mode: Mode, part: Part, kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """Not even looked at: there is no page of the guest's memory that was not there before."""
    guest = vhost_user_guest(
        server.add(Memory(SIZE), **options(mode, pool(kind))),
        confidential=Machine(kind=kind, swiotlb=SMALL),
    )
    guest.write(0, STORED)
    submit, _ = make_request(guest, part)
    expected = EXPECTED[mode][part]
    assert attempt(guest.queues[0], Case(part, expected, submit)) is expected
    assert isinstance(guest.dma, Bounced)
    assert touched_pages(guest.memory) <= guest.memory.shared_pages


@pytest.mark.parametrize("kind", get_args(Kind))
def test_an_honest_guest_is_served(kind: Kind, server: Serving, vhost_user_guest: Connect) -> None:
    """With the strictest policy and the pool it has, nothing fails; its rings need no listing."""
    path = server.add(Memory(SIZE), num_queues=2, **options("break", pool(kind)))
    machine = Machine(kind=kind, swiotlb=SMALL)
    guest = vhost_user_guest(path, queues=2, confidential=machine)
    for i in range(8):
        guest.write(8 * i, bytes([i]) * 4096, queue=i % 2)
        assert guest.read(8 * i, 4096, queue=(i + 1) % 2) == bytes([i]) * 4096
    guest.flush()


def test_a_window_that_has_moved(server: Serving, vhost_user_guest: Connect) -> None:
    """After a reboot the pool lies elsewhere: listed ranges say so, and serve the one they name."""
    path = server.add(Memory(SIZE), **options("fail"))
    guest = vhost_user_guest(path, confidential=Machine(kind="bounced", swiotlb=SMALL))
    guest.write(0, STORED)
    guest.reboot()
    assert isinstance(guest.dma, Bounced)
    assert not set(guest.dma.pools[0]) & set(pool())
    with pytest.raises(GuestError):
        guest.read(0, 512)
    guest.close()
    again = vhost_user_guest(path, confidential=Machine(kind="bounced", swiotlb=SMALL))
    assert again.read(0, len(STORED)) == STORED


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_rings_that_must_be_inside(
    where: str, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """``rings=inside``: a ring elsewhere does not start, and the front-end is told."""
    end = 0x4000000 if where == "inside" else pool().stop
    start = 0 if where == "inside" else pool().start
    shared = parse_shared_ranges(f"{start:#x}-{end:#x},rings=inside")
    path = server.add(Memory(SIZE), confidential=Confidential.REQUIRE, shared_ranges=shared)
    machine = Machine(kind="bounced", swiotlb=SMALL)
    if where == "inside":
        assert vhost_user_guest(path, confidential=machine).read(0, 512) == bytes(512)
        return
    with pytest.raises(NackError):
        vhost_user_guest(path, confidential=machine)
    assert until(lambda: "lies outside the shared ranges" in caplog.text)


def test_no_version_1(server: Serving, vhost_user_guest: Connect) -> None:
    """A driver of old is not served, and its front-end is told; other modes serve it."""
    old = DEFAULT_FEATURES & ~vr.F_VERSION_1
    machine = Machine(kind="bounced", swiotlb=SMALL)
    with pytest.raises(NackError):
        vhost_user_guest(
            server.add(Memory(SIZE), **options("warn")), features=old, confidential=machine
        )
    path = server.add(Memory(SIZE), **options("auto"))
    assert vhost_user_guest(path, features=old, confidential=machine).read(0, 512) == bytes(512)


LEARN = 160
"""Requests after which the pool has been used from end to end: it has 512 slots, used in turn, and
one takes five."""


def learn(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    """Let a start be learned from; nothing but the pool is used, and everything is served."""
    lines = caplog.text.count("learned from")
    for i in range(LEARN + 1):
        guest.write(i % 8, bytes([i]) * 512)
    assert until(lambda: caplog.text.count("learned from") == lines + 1)


@pytest.mark.parametrize("mode", ["warn", "fail", "break"])
@pytest.mark.parametrize("part", ["nothing", "read", "status"])
def test_learn_then_violate(
    mode: Mode,
    part: Part,
    server: Serving,
    vhost_user_guest: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    The first requests of a start decide where later ones may go, without being told any range.

    After a reboot, with the pool elsewhere, it is learned again.
    """
    caplog.set_level("INFO")
    asked = {**options(mode), "shared_ranges": parse_shared_ranges(f"learn={LEARN}")}
    guest = vhost_user_guest(
        server.add(Memory(SIZE), num_queues=2, **asked),
        queues=2,
        confidential=Machine(kind="bounced", swiotlb=SMALL),
    )
    guest.write(0, STORED)
    submit, place = make_request(guest, part)
    learn(guest, caplog)
    guest.write(0, STORED)
    expected = EXPECTED.get(mode, {}).get(part, OK)
    assert attempt(guest.queues[0], Case(part, expected, submit)) is expected
    served = STORED if expected is OK else CANARY * len(STORED)
    assert guest.memory.read(place.gpa, place.length) == served
    guest.reboot()
    learn(guest, caplog)
    assert guest.read(0, 512) == bytes([LEARN]) * 512


def read_on(guest: Guest, queue: int) -> None:
    """Read until something happens: a verdict comes beside the requests."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        guest.read(0, 512, queue=queue)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_guest_that_does_not_bounce(
    mode: Mode, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where every range is allowed: its queues stop, and it is told why; once a start."""
    path = server.add(Memory(SIZE), num_queues=2, **options(mode, range(64 << 20)))
    guest = vhost_user_guest(path, queues=2)
    other = vhost_user_guest(server.add(Memory(SIZE)))
    why = "do not go through a bounce pool"
    condemned = mode in {"fail", "break"}
    for times in (1, 2):
        for _ in range(32):
            guest.write(0, STORED)
        if condemned:
            with pytest.raises(BrokenQueueError):
                read_on(guest, 0)
            with pytest.raises(BrokenQueueError):
                read_on(guest, 1)
        else:
            assert [guest.read(0, len(STORED)) for _ in range(4)] == [STORED] * 4
        told = times if mode not in {"off", "auto"} else 0
        assert until(lambda told=told: caplog.text.count(why) >= told)  # type: ignore[misc]
        assert caplog.text.count(why) == told
        assert other.read(0, 512) == bytes(512)
        guest.stop()
        guest.reboot()


@pytest.mark.parametrize("mode", ["warn", "fail", "break"])
def test_what_is_said_of_a_violation(
    mode: Mode, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """One line with the offending address, however often it happens within a second."""
    path = server.add(Memory(SIZE), **options(mode))
    guest = vhost_user_guest(path, confidential=Machine(kind="bounced", swiotlb=SMALL))
    guest.write(0, STORED)
    submit, place = make_request(guest, "read")
    for _ in range(1 if mode == "break" else 3):
        attempt(guest.queues[0], Case("read", OK, submit))
    line = f"a request names 1024 bytes at {place.gpa:#x} (writable), outside the shared ranges"
    assert until(lambda: line in caplog.text)
    assert caplog.text.count("outside the shared ranges:") == 1


@pytest.mark.parametrize("word", ["", ",firmware=inside"])
def test_firmware_before_the_system(word: str, server: Serving, vhost_user_guest: Connect) -> None:
    """Firmware's islands are served unless it is asked for; the system after it is held."""
    span = pool("snp")
    shared = parse_shared_ranges(f"{span.start:#x}-{span.stop:#x}{word}")
    guest = vhost_user_guest(
        server.add(Memory(SIZE), **{**options("fail"), "shared_ranges": shared}),
        confidential=Machine(kind="snp", swiotlb=SMALL),
    )
    guest.write(0, STORED)
    with guest.firmware_phase():
        taken = guest.memory.allocate(len(span), align=4096)  # where the pool was
        assert taken in span
        if word:
            with pytest.raises(BrokenQueueError):
                guest.read(0, 512)
        else:
            assert guest.read(0, 512) == STORED[:512]
        guest.memory.free(taken)
    submit, _ = make_request(guest, "read")
    assert attempt(guest.queues[0], Case("read", IOERR, submit)) is IOERR


@pytest.mark.parametrize("listed", [True, False])
def test_behind_an_iommu(server: Serving, vhost_user_guest: Connect, *, listed: bool) -> None:
    """It is the guest physical address behind an IOVA that is listed; rings may be anywhere."""
    memory = range(0 if listed else 48 << 20, 64 << 20)  # its buffers are in the lower part
    guest = vhost_user_guest(server.add(Memory(SIZE), **options("break", memory)), iommu="page")
    if listed:
        guest.write(0, STORED)
        assert guest.read(0, len(STORED)) == STORED
        return
    with pytest.raises(BrokenQueueError):
        guest.write(0, STORED * 64)  # more than the pages of the ring have room for
    assert guest.stop() == {0: 0}
