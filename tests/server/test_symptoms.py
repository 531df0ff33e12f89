"""Guests that are set up badly, on both data planes: what the log says of them."""

import random
import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from server_kit.serving import Serving, until

from vhostblk.disk.memory import Memory
from vhostblk.guest.blk import Request
from vhostblk.guest.confidential import Confidential, Kind
from vhostblk.guest.errors import BrokenQueueError, DeadlineError
from vhostblk.guest.guest import Guest
from vhostblk.guest.holes import touched_pages
from vhostblk.guest.hostile import (
    INDIRECT_CASES,
    RING_CASES,
    Case,
    Outcome,
    attempt,
    chain,
    data,
    header,
    status,
)
from vhostblk.guest.layout import MIB, PAGE, Region
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.pages import ADDRESS_BIT
from vhostblk.server import detect
from vhostblk.server.policy import Confidential as Policy
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
SIZE = 1 << 20
ENCRYPTED, ZEROES, BIT = "looks encrypted", "reads as zeroes", "the same without bit"
HINTS = (ENCRYPTED, ZEROES, BIT, "makes sense", "no driver has set up a ring")


def ring_pages(guest: Guest) -> set[int]:
    """Return the pages of all rings."""
    pages = set()
    for queue in guest.queues:
        at, shape = queue.ring.addresses, queue.ring.shape
        for gpa, length in (
            (at.desc, shape.desc_bytes),
            (at.avail, shape.avail_bytes),
            (at.used, shape.used_bytes),
        ):
            pages |= set(range(gpa - gpa % PAGE, gpa + length, PAGE))
    return pages


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "LOOKS", (0.02,) * 400)  # of a busy host, none is the last


@pytest.mark.parametrize(
    ("seed", "size", "broken"),
    [
        (0, 256, "avail index further ahead than the ring is long"),
        (1, 1024, "avail index further ahead than the ring is long"),
        (48, 1024, "head out of range"),
        (61, 1024, "head out of range"),
    ],
)
def test_rings_of_ciphertext(  # noqa: PLR0913, PLR0917 - three facts of each guest
    seed: int,
    size: int,
    broken: str,
    server: Serving,
    vhost_user_guest: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    An SEV guest whose driver knows nothing of sharing: the line says so, with its evidence.

    With 1,024 descriptors one index in 64 passes, and the next thing that is read makes no sense
    either; the seeds show both.
    """
    path = server.add(Memory(SIZE))
    private = Confidential(kind="sev", swiotlb=None, seed=seed)
    guest = vhost_user_guest(path, confidential=private, queue_size=size, start=False)
    before = touched_pages(guest.memory)
    guest.start()
    guest.queues[0].wait_broken(5)
    assert until(lambda: ENCRYPTED in caplog.text)
    assert f"queue 0 is broken: {broken}" in caplog.text
    assert f"queue 0: the ring at GPA {guest.queues[0].ring.addresses.desc:#x} reads" in caplog.text
    assert f" zero bytes of {26 * size + 12})" in caplog.text
    assert caplog.text.count(ENCRYPTED) == 1
    assert touched_pages(guest.memory) <= before | ring_pages(guest)


def test_noise_behind_an_iommu(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the ring is in the guest is said, not its IOVA."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), iommu="page", queue_size=256)
    guest.write(0, b"served".ljust(512))
    at, shape = guest.queues[0].ring.addresses, guest.queues[0].ring.shape
    noise = random.Random(1).randbytes(8192)
    guest.memory.write(at.desc, noise[: shape.desc_bytes])
    guest.memory.write(at.used, noise[: shape.used_bytes])
    guest.memory.write(at.avail, noise[: shape.avail_bytes])
    guest.queues[0].notify()
    guest.queues[0].wait_broken(5)
    assert until(lambda: ENCRYPTED in caplog.text)
    assert f"the ring at GPA {at.desc:#x} reads as random bytes (avail idx " in caplog.text


@pytest.mark.parametrize("kind", ["snp", "tdx"])
@pytest.mark.usefixtures("_soon")
def test_rings_that_were_never_shared(
    kind: Kind, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """One kick of one request is enough; only the rings' own pages are there for it."""
    path = server.add(Memory(SIZE), num_queues=2)
    private = Confidential(kind=kind, swiotlb=None)
    guest = vhost_user_guest(path, confidential=private, queues=2)
    guest.submit(Request.read(0, 512), queue=1)
    assert until(lambda: ZEROES in caplog.text)
    gpa = guest.queues[1].ring.addresses.desc
    assert f"queue 1: kicked 1 time, but its ring at GPA {gpa:#x} reads" in caplog.text
    assert touched_pages(guest.memory) <= ring_pages(guest)
    assert "queue 0" not in caplog.text


@pytest.mark.usefixtures("_soon")
def test_memory_that_lacks_share_on(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The front-end's copy is its own: the line has both causes, and the remedy of this one."""
    path = server.add(Memory(SIZE))
    with GuestMemory([Region(0, 16 * MIB)], share=False) as memory:
        guest = vhost_user_guest(path, memory=memory)
        guest.submit(Request.read(0, 512))
        assert until(lambda: ZEROES in caplog.text)
        guest.close()
    assert "RAM lacks share=on" in caplog.text
    assert "never shared its rings" in caplog.text


@pytest.mark.parametrize("kind", ["sev", "tdx"])
def test_an_address_bit_is_named(
    kind: Kind, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A C-bit or a shared bit in every address: the first one is that of the indirect table."""
    bit = ADDRESS_BIT[kind]
    marked = Confidential(kind=kind, address_bit=bit)
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential=marked)
    with pytest.raises(BrokenQueueError):
        guest.read(0, 512)
    assert until(lambda: BIT in caplog.text)
    assert "the indirect table at 0x8" in caplog.text
    assert f"the same without bit {bit}, is inside" in caplog.text
    assert guest.queues[0].split.used_idx() == 0, "never repaired"


@pytest.mark.usefixtures("_soon")
def test_a_driver_that_never_comes(
    server: Serving,
    vhost_user_guest: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Connected, the config space read, no ring: for information, once."""
    monkeypatch.setattr(detect, "DRIVER_SECONDS", 0.02)
    caplog.set_level("INFO")
    vhost_user_guest(server.add(Memory(SIZE)), start=False)
    assert until(lambda: "no driver has set up a ring" in caplog.text)
    assert "no driver has set up a ring" in caplog.records[-1].getMessage()


@pytest.mark.usefixtures("_soon")
def test_requests_that_make_no_sense(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Sound rings and headers of noise: no matter of encryption."""
    guest = vhost_user_guest(server.add(Memory(SIZE)))
    for kind in range(100, 132):
        assert guest.run(Request(type=kind)).status == Status.UNSUPP
    assert until(lambda: "makes sense" in caplog.text)
    assert "not one of its first 32 requests makes sense (32 of unknown type" in caplog.text


@pytest.mark.parametrize("case", [*RING_CASES, *INDIRECT_CASES], ids=lambda case: case.name)
@pytest.mark.usefixtures("_soon")
def test_a_hostile_driver_is_not_called_confidential(
    case: Case, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A ring that was in use and is broken on purpose is just broken."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), queue_size=16)
    for i in range(20):
        guest.write(i, bytes([i + 1]) * 512)
    attempt(guest.queues[0], case)
    assert until(lambda: "is broken" in caplog.text)
    assert not [hint for hint in HINTS if hint in caplog.text]


@pytest.mark.parametrize("kind", [None, "bounced", "sev", "snp", "tdx"])
@pytest.mark.usefixtures("_soon")
def test_a_good_guest_hears_nothing(
    kind: Kind | None, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Served, idle, started anew, with queues that are never used: no hint."""
    caplog.set_level("INFO")
    path = server.add(Memory(SIZE), num_queues=2)
    guest = vhost_user_guest(path, confidential=kind, queues=2)
    for _ in range(2):
        guest.write(0, b"served".ljust(512))
        time.sleep(0.05)
        guest.reboot()
    assert not [hint for hint in HINTS if hint in caplog.text]


@pytest.mark.usefixtures("_soon")
def test_off_keeps_all_hints_back(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Confidential off: a broken queue still has its line, and that is all."""
    caplog.set_level("INFO")
    path = server.add(Memory(SIZE), confidential=Policy.OFF)
    vhost_user_guest(path, start=False).close()
    for bad in (
        Confidential(kind="sev", swiotlb=None),
        Confidential(kind="tdx", address_bit=47),
        Confidential(kind="snp", swiotlb=None),
    ):
        guest = vhost_user_guest(path, confidential=bad)
        ticket = guest.submit(Request.read(0, 512))
        with pytest.raises((BrokenQueueError, DeadlineError)):
            guest.wait(ticket, timeout=0.1)
        guest.close()
    assert until(lambda: caplog.text.count("is broken") == 2)
    assert not [hint for hint in HINTS if hint in caplog.text]


@pytest.mark.parametrize("part", ["header", "data", "status"])
def test_an_address_bit_in_a_buffer_is_named(
    part: str, server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Its request fails or, without a status, its queue: nothing is touched, one line says why."""
    guest = vhost_user_guest(server.add(Memory(SIZE)))
    queue = guest.queues[0]
    good = {"header": header(queue), "data": data(queue), "status": status(queue)}
    asked = good | {part: replace(good[part], gpa=good[part].gpa | 1 << 51)}
    outcome = Outcome.BROKEN if part == "status" else Outcome.IOERR
    case = Case("C-bit", outcome, lambda queue: chain(queue, *asked.values()))
    before = guest.memory.read(good["data"].gpa, 512), guest.memory.read(good["status"].gpa, 1)
    assert attempt(queue, case) is outcome
    gpa = good[part].gpa
    line = rf"queue 0: the (buffer|status byte) at {gpa | 1 << 51:#x} is outside guest memory, "
    assert until(lambda: bool(re.search(f"{line}and {gpa:#x}, the same", caplog.text)))
    assert caplog.text.count(BIT) == 1
    assert server.devices[0].guest.cbit_address == 1
    assert guest.memory.read(good["data"].gpa, 512) == before[0]
    if part == "status":
        assert guest.memory.read(good["status"].gpa, 1) == before[1]
        guest.reboot()
    assert guest.read(0, 512) == bytes(512)
