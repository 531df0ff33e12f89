"""Another disk behind a device whose guest uses it: who serves what, and that nothing is lost."""

import errno
import gc
import itertools
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from server_kit.disks import Failing, Slow
from server_kit.left import open_fds, threads
from server_kit.replacing import MIB, SECTORS, Full, X, Y, image, replace
from server_kit.serving import Serving, until

from vhostblk.disk.api import Disk
from vhostblk.disk.file import File
from vhostblk.disk.memory import Memory
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, GuestMemory, Region, Request, StatusError, hostile
from vhostblk.server.status import status
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]


def busy(disk: Full) -> bool:
    return len(disk.served) > 20


@pytest.mark.parametrize("queues", [1, 3])
def test_guest_goes_on_with_the_other_disk(
    queues: int, server: Serving, vhost_user_guest: Connect
) -> None:
    """On every queue, without a word to the guest; the old disk is flushed, then closed."""
    old, new = Full(b"o"), Full(b"n")
    guest = vhost_user_guest(server.add(old, num_queues=queues), queues=queues)
    for queue in range(queues):
        guest.write(8 * queue, X, queue=queue)
    replace(server, new)
    assert old.order == ["write"] * queues + ["flush", "close"]
    for queue in range(queues):
        assert guest.read(8 * queue, 4096, queue=queue) == b"n" * 4096
        guest.write(8 * queue, Y, queue=queue)
    assert new.data[: 4096 * queues] == Y * queues
    assert old.data[: 4096 * queues] == X * queues
    assert "close" not in new.order


KINDS: dict[str, Callable[[Path, str], Disk]] = {
    "file": lambda path, name: File(image(path / name, name[:1].encode())),
    "memory": lambda _path, _name: Memory(MIB),
    "python": lambda _path, name: Full(name[:1].encode()),
}


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
def test_any_disk_can_follow_any(
    old: str, new: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Served by C or by Python, one behind the other."""
    guest = vhost_user_guest(server.add(KINDS[old](tmp_path, "a")))
    guest.write(0, X)
    if (old, new) == ("file", "memory"):
        with pytest.raises(VhostBlkError, match="the guest was promised"):
            replace(server, KINDS[new](tmp_path, "b"))
        assert guest.read(0, 4096) == X
        return
    if old != "python" and new == "python":  # it has discard, but writes zeroes one by one
        with pytest.raises(VhostBlkError, match="the guest was promised writes of zeroes"):
            replace(server, KINDS[new](tmp_path, "b"))
        assert guest.read(0, 4096) == X
        return
    replace(server, KINDS[new](tmp_path, "b"))
    assert guest.read(0, 4096) == (bytes(4096) if new == "memory" else b"b" * 4096)
    guest.write(8, Y)
    guest.flush()
    assert guest.read(8, 4096) == Y


@pytest.mark.parametrize(
    "kind", [{}, {"packed": True}, {"in_order": True}, {"packed": True, "in_order": True}], ids=str
)
def test_each_request_is_served_once_and_in_order(
    kind: dict[str, bool], server: Serving, vhost_user_guest: Connect
) -> None:
    """Under load: what the old disks have served and what the new ones have is what was asked."""
    disks = [Full() for _ in range(6)]
    guest = vhost_user_guest(server.add(disks[0]), **kind)
    failures: list[BaseException] = []
    over = threading.Event()
    sent = 0

    def load() -> None:
        nonlocal sent
        try:
            while not over.is_set():
                tickets = []
                for _ in range(8):
                    tickets.append(guest.submit(Request.write(0, sent.to_bytes(4, "little") * 128)))
                    sent += 1
                assert [guest.wait(one).status for one in tickets] == [Status.OK] * 8
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    load_thread = threading.Thread(target=load)
    load_thread.start()
    try:
        for before, disk in itertools.pairwise(disks):
            assert until(partial(busy, before))
            replace(server, disk)
    finally:
        over.set()
        load_thread.join()
    assert failures == []
    numbers = [number for disk in disks for _, number in disk.served]
    assert numbers == list(range(sent)), "each by one disk, none twice, none lost, in order"
    for old in disks[:-1]:
        assert old.order[-2:] == ["flush", "close"]
        assert old.order.count("flush") == 1


def test_request_under_way_ends_on_the_old_disk(server: Serving, vhost_user_guest: Connect) -> None:
    """It is waited for; those behind it begin on the new one."""
    old, new = Slow(), Full()
    guest = vhost_user_guest(server.add(old, drain_seconds=10.0))
    old.set(free=False)
    first = guest.submit(Request.write(0, X))
    assert until(lambda: old.waiting == 1)
    replacing = threading.Thread(target=replace, args=(server, new))
    replacing.start()
    assert until(lambda: any(one.name.startswith("disk") for one in threading.enumerate()))
    old.set(free=True)
    replacing.join()
    second = guest.submit(Request.write(8, Y))
    assert [guest.wait(one).status for one in (first, second)] == [Status.OK] * 2
    assert old.data[:4096] == X
    assert new.data[:8192] == bytes(4096) + Y


def test_between_front_ends_and_before_the_first(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Whoever comes next finds the new disk."""
    old, new = Full(b"o"), Full(b"n")
    path = server.add(old)
    replace(server, new)
    assert old.order == ["flush", "close"]
    with Guest.connect(path) as guest:
        assert guest.read(0, 4096) == b"n" * 4096
    replace(server, Full(b"l", 2 * MIB))
    guest = vhost_user_guest(path)
    assert guest.read(2 * SECTORS - 8, 4096) == b"l" * 4096


def test_rings_stay_as_they_are(server: Serving, vhost_user_guest: Connect) -> None:
    """Disabled, broken, stopped and never started ones: each as it was, on the new disk."""
    path = server.add(Full(b"o"), num_queues=4)
    guest = vhost_user_guest(path, queues=4)
    guest.read(0, 512, queue=2)
    assert hostile.attempt(guest.queues[1], hostile.RING_CASES[0]) is hostile.Outcome.BROKEN
    guest.frontend.set_vring_enable(3, enable=False)
    replace(server, Full(b"n"))
    document = server.ask(lambda: status(server.devices[0]))
    assert [queue["running"] for queue in document["queues"]] == [True, False, True, True]
    assert document["queues"][1]["fault"] is not None
    assert guest.read(0, 512, queue=0) == b"n" * 512
    ticket = guest.submit(Request.read(0, 512), queue=3)
    assert guest.read(0, 512, queue=2) == b"n" * 512
    assert not ticket.done
    guest.frontend.set_vring_enable(3, enable=True)
    assert guest.wait(ticket).data == b"n" * 512
    guest.reboot()
    for queue in range(4):
        assert guest.read(0, 512, queue=queue) == b"n" * 512


def test_queue_that_breaks_on_the_new_disk_tells(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """The err descriptor, which is never sent again, is still known."""
    guest = vhost_user_guest(server.add(Full()))
    replace(server, Full())
    assert hostile.attempt(guest.queues[0], hostile.RING_CASES[0]) is hostile.Outcome.BROKEN


def test_counters_go_on(server: Serving, vhost_user_guest: Connect) -> None:
    """They are of the front-end, whatever disk it had."""
    guest = vhost_user_guest(server.add(Full()))
    for _ in range(3):
        guest.write(0, X)
        replace(server, Full())
    guest.write(0, X)
    counters = server.ask(lambda: status(server.devices[0]))["queues"][0]["counters"]
    assert (counters["writes"], counters["bytes_written"]) == (4, 4 * 4096)
    assert counters["segment_max"] == 4096
    assert (counters["in_flight"], counters["dead"]) == (0, 0)


def test_behind_an_iommu(server: Serving) -> None:
    """Rings and buffers by IOVA: the new queues ask again, and nothing is lost."""
    path = server.add(Full(b"o"), num_queues=2)
    with Guest.connect(path, queues=2, queue_size=64, iommu="page") as guest:
        guest.write(0, X)
        for fill in (b"1", b"2", b"3"):
            replace(server, Full(fill))
            for queue in (0, 1):
                assert guest.read(8, 12288, queue=queue) == fill * 12288
                guest.write(0, Y, queue=queue)


def test_translations_that_are_late(server: Serving) -> None:
    """What a chain waits for when its queue goes is asked for again by the next one."""
    path = server.add(Full(b"o"))
    with Guest.connect(path, queue_size=64, iommu="page") as guest:
        assert guest.iommu is not None
        guest.iommu.answers = lambda _: "late"
        for fill in (b"1", b"2", b"3"):
            tickets = [guest.submit(Request.write(8 * i, X)) for i in range(8)]
            replace(server, Full(fill))
            assert [guest.wait(one).status for one in tickets] == [Status.OK] * 8
            assert guest.read(80, 4096) == fill * 4096


def test_nothing_is_left_of_old_disks(server: Serving, vhost_user_guest: Connect) -> None:
    """Descriptors and threads after many replacements are as before."""
    guest = vhost_user_guest(server.add(Full(), num_queues=2), queues=2)
    replace(server, Full())
    gc.collect()  # not those of the test before
    before = open_fds(), threads()
    for _ in range(10):
        replace(server, Full())
        guest.write(0, X)
    assert until(lambda: open_fds() <= before[0] and threads() <= before[1])


def test_front_end_that_leaves_meanwhile(server: Serving) -> None:
    """Its queues are dropped once the change is done with them; the device serves the next."""
    path = server.add(Slow(), drain_seconds=10.0, num_queues=2)
    for fill in (b"1", b"2", b"3"):
        guest = Guest.connect(path, queues=2)
        guest.read(0, 512)
        replacing = threading.Thread(target=replace, args=(server, Full(fill)))
        replacing.start()
        guest.close()
        replacing.join()
        with Guest.connect(path) as after:
            assert after.read(0, 512) == fill * 512


def test_failing_disk_is_replaced_by_a_good_one(server: Serving, vhost_user_guest: Connect) -> None:
    """What this is for: the guest's retries succeed without a reboot."""
    bad = Failing()
    guest = vhost_user_guest(server.add(bad))
    bad.error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(StatusError):
        guest.write(0, X)
    replace(server, Full())
    guest.write(0, X)
    assert guest.read(0, 4096) == X


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_migration_goes_on_over_other_disks(packed: bool, server: Serving, engine: str) -> None:  # noqa: FBT001
    """The new queues mark the dirty log as the old ones did: the fake guest compares its memory."""
    if engine != "native":
        pytest.skip("the reference engine marks no dirty log")
    path = server.add(Full(b"o"), num_queues=2)
    there = server.add(Full(b"t"), num_queues=2)
    fills = iter((b"1", b"2", b"3"))
    read: list[bytes] = []

    def meanwhile() -> None:
        replace(server, Full(next(fills)))
        read.extend(guest.read(8 * queue, 8192, queue=queue) for queue in (0, 1))

    with (
        GuestMemory([Region(0, 4 * MIB)]) as memory,
        Guest.connect(path, queues=2, packed=packed, memory=memory) as guest,
    ):
        guest.migrate_to(there, passes=3, meanwhile=meanwhile)
        assert read == [fill * 8192 for fill in (b"1", b"2", b"3") for _ in range(2)]
        assert guest.read(0, 512) == b"t" * 512
