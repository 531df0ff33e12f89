"""Another disk behind a device whose guest uses it: who serves what, and that nothing is lost."""

import errno
import gc
import itertools
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from server_kit.disks import Failing, Ram, Slow, Stuck
from server_kit.left import open_fds, threads
from server_kit.serving import Serving, until

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.disk.file import File, LockWhen
from vhostblk.disk.memory import Memory
from vhostblk.disk.null import Null
from vhostblk.engine.api import Queue
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, GuestMemory, Region, Request, StatusError, hostile
from vhostblk.guest.errors import GuestError
from vhostblk.server import change
from vhostblk.server.attachment import Attachment
from vhostblk.server.backing import Backing
from vhostblk.server.jsonrpc import Json
from vhostblk.server.status import status
from vhostblk.spec.vhost_user import BackendRequest
from vhostblk.spec.virtio_blk import F_RO, Status

Connect = Callable[..., Guest]
MIB = 1 << 20
SECTORS = MIB // 512
X, Y, Z = b"x" * 4096, b"y" * 4096, b"z" * 4096


class Full(Ram):
    """A memory full of one byte; notes what is written, by its first byte."""

    def __init__(self, fill: bytes = b"\0", size: int = MIB) -> None:
        super().__init__(size)
        self.data[:] = fill * size
        self.served: list[tuple[int, int]] = []
        self.order: list[str] = []

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        self.served.append((offset, int.from_bytes(bytes(views[0][:4]), "little")))
        self.order.append("write")
        super().write(offset, views)

    def flush(self) -> None:
        self.order.append("flush")

    def close(self) -> None:
        self.order.append("close")


def replace(server: Serving, disk: object, device: int = 0) -> None:
    server.run(change.replace(server.devices[device], disk, None))


def replace_by(server: Serving, text: str, device: str = "s1") -> Json:
    return server.run(server.operations.replace(device, text))


def busy(disk: Full) -> bool:
    return len(disk.served) > 20


def image(path: Path, fill: bytes = b"\0", size: int = MIB) -> Path:
    path.write_bytes(fill * size)
    return path


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


def test_other_size_is_told(server: Serving, vhost_user_guest: Connect, tmp_path: Path) -> None:
    """Larger or smaller, the guest hears of it and has no more than there is."""
    guest = vhost_user_guest(server.add(File(image(tmp_path / "a"))))
    for size in (2 * MIB, MIB // 2):
        row = replace_by(server, str(image(tmp_path / "b", b"b", size)))
        assert isinstance(row, dict)
        assert row["size"] == size
        assert guest.channel.receive().request == BackendRequest.CONFIG_CHANGE_MSG
        assert guest.config().capacity == size // 512
        assert guest.read(size // 512 - 8, 4096) == b"b" * 4096
        with pytest.raises(StatusError):
            guest.read(size // 512, 512)
        image(tmp_path / "b", b"b", size).rename(tmp_path / f"was-b-{size}")


def test_same_image_with_another_cache_mode(
    server: Serving, vhost_user_guest: Connect, direct_image: Path
) -> None:
    """Its own lock is no obstacle, and stays: nobody else gets the image in between or later."""
    guest = vhost_user_guest(server.add(File(direct_image)))
    guest.write(0, X)
    replace_by(server, f"file:{direct_image},cache=writethrough")
    assert guest.read(0, 4096) == X
    other = File(direct_image)
    with pytest.raises(VhostBlkError, match="in use"):
        other.open()
    replace_by(server, f"file:{direct_image},locking=off")
    other.open()
    with pytest.raises(VhostBlkError, match="in use"):
        replace_by(server, str(direct_image))
    other.close()
    guest.write(8, Y)
    assert direct_image.read_bytes()[:8192] == X + Y


def test_image_that_somebody_else_uses(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """The new one is locked before the old one goes; without the lock the old one stays."""
    guest = vhost_user_guest(server.add(File(image(tmp_path / "a", b"a"))))
    other = File(image(tmp_path / "b"))
    other.open()
    with pytest.raises(VhostBlkError, match=r"^s1: .*in use"):
        replace_by(server, str(tmp_path / "b"))
    assert guest.read(0, 4096) == b"a" * 4096
    blocked = File(tmp_path / "a")
    with pytest.raises(VhostBlkError, match="in use"):
        blocked.open()
    other.close()
    replace_by(server, str(tmp_path / "b"))
    blocked.open()
    blocked.close()


class Coarse(Full):
    """Blocks larger than the guest's."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=MIB, block_size=4096)


class Plain:
    """Reads and nothing else."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=MIB)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            view[:] = bytes([offset % 256]) * len(view)


class Short(Full):
    """A limit below the promised one."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=MIB, max_discard=MIB)


class Odd(Full):
    """No whole blocks."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=MIB + 100)


class Angry(Full):
    """Raises something."""

    def open(self) -> None:
        raise ZeroDivisionError("oh")


@pytest.mark.parametrize(
    ("disk", "says"),
    [
        (Coarse(), "promised blocks of 512 bytes, and the other disk has 4096"),
        (Plain(), "promised writes, which the other disk has not"),
        (Slow(), "promised discards, which the other disk has not"),
        (Short(), "promised discards of up to 1073741824 bytes, and the other disk has up to"),
        (Odd(), "size 1048676 is not a multiple"),
        (Angry(), "the disk raised in open: ZeroDivisionError: oh"),
        (File("/nowhere/at/all"), "no such file"),
        (object(), "is not a disk"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_disk_that_cannot_follow_is_refused(
    disk: object, says: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """The old one goes on, with all that the guest knows of it; nothing of the other is left."""
    old = Full(b"o")
    guest = vhost_user_guest(server.add(old))
    gc.collect()  # not those of the test before
    before = open_fds(), threads()
    with pytest.raises(VhostBlkError, match=says):
        replace(server, disk)
    assert guest.read(0, 4096) == b"o" * 4096
    guest.write(0, X)
    assert old.order == ["write"]
    assert until(lambda: open_fds() <= before[0] and threads() <= before[1])


def test_read_only_device_stays_so(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """The operator's option holds for the next disk, too; writable by its nature stays, too."""
    guest = vhost_user_guest(
        server.add(File(image(tmp_path / "a"), read_only=True), read_only=True)
    )
    assert guest.features & F_RO
    b = image(tmp_path / "b", b"b")
    reader = File(b, read_only=True)
    reader.open()  # shares its lock with readers only
    replace_by(server, str(b))
    with pytest.raises(StatusError):
        guest.write(0, X)
    assert guest.read(0, 4096) == b"b" * 4096
    reader.close()
    server.add(File(image(tmp_path / "c"), read_only=True))
    with pytest.raises(VhostBlkError, match="promised refusal of writes"):
        replace_by(server, f"file:{tmp_path}/a,locking=off", "s2")


def test_old_disk_that_cannot_be_flushed_goes_on(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """What the guest has written would be lost with it."""

    class Bad(Full):
        bad = True

        def flush(self) -> None:
            if self.bad:
                raise OSError(errno.EIO, "Input/output error")

    old = Bad(b"o")
    guest = vhost_user_guest(server.add(old))
    with pytest.raises(VhostBlkError, match=r"Bad cannot be flushed \(Input/output error\), so it"):
        replace(server, Full())
    assert guest.read(0, 4096) == b"o" * 4096
    old.bad = False


def test_dead_requests_keep_the_old_disk(server: Serving, vhost_user_guest: Connect) -> None:
    """They may still be carried out: on the disk that is served, or on nothing."""
    stuck = Stuck()
    guest = vhost_user_guest(server.add(stuck, drain_seconds=0.05))
    try:
        ticket = guest.submit(Request.read(0, 512))
        assert stuck.stuck.wait(10)
        with pytest.raises(VhostBlkError, match="1 requests were given up"):
            replace(server, Full())
        assert guest.wait(ticket).status == Status.IOERR
    finally:
        stuck.let_go.set()
    assert until(lambda: server.ask(server.devices[0].dead) == 0)
    replace(server, Full(b"n"))
    assert guest.read(0, 512) == b"n" * 512


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


def test_queue_that_cannot_be_made_changes_nothing(
    server: Serving, vhost_user_guest: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queues that were made are dropped, all rings go on with the old disk."""
    old = Full(b"o")
    guest = vhost_user_guest(server.add(old, num_queues=3), queues=3)
    guest.read(0, 512, queue=2)
    make = Backing.make_queue

    def fails(self: Backing, index: int, *, on_broken: Callable[[], None]) -> Queue:
        if index == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return make(self, index, on_broken=on_broken)

    gc.collect()  # not those of the test before
    before = open_fds(), threads()
    with monkeypatch.context() as patch:
        patch.setattr(Backing, "make_queue", fails)
        with pytest.raises(OSError, match="Too many open files"):
            replace(server, Full(b"n"))
    assert until(lambda: open_fds() <= before[0] and threads() <= before[1])
    device, front = server.devices[0], server.devices[0].attached
    assert front is not None
    for queue in range(3):
        assert guest.read(0, 512, queue=queue) == b"o" * 512
        assert device._slow._queues[queue] is front.rings[queue].queue
    replace(server, Full(b"n"))
    assert guest.read(0, 512, queue=2) == b"n" * 512


def test_memory_that_has_moved_is_never_used(
    server: Serving, vhost_user_guest: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no queues can be made for it after a resize the front-end is hung up on."""
    path = server.add(Memory(MIB))
    guest = vhost_user_guest(path, timeout=0.5)
    guest.write(0, X)

    async def fails(_self: Attachment, _backing: Backing) -> list[Queue]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Attachment, "exchange", fails)
        with pytest.raises(OSError, match="Too many open files"):
            server.run(server.operations.resize("s1", 64 * MIB))
    with pytest.raises(GuestError):
        guest.read(0, 4096)
    with Guest.connect(path) as after:
        assert after.read(0, 4096) == X
        assert after.config().capacity == 64 * SECTORS


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


def test_null_follows_null(server: Serving, vhost_user_guest: Connect) -> None:
    """By the text an operator types; what is served is then named so."""
    guest = vhost_user_guest(server.add(Null(MIB)))
    row = replace_by(server, "null:1M,zero=off")
    assert isinstance(row, dict)
    assert row["disk"] == "null:1M,zero=off"
    guest.read(0, 4096)
    for text, says in (
        ("nul:1M", "no disk has the scheme"),
        ("null:1X", "is not a size"),
        ("", "an empty name is no disk"),
    ):
        with pytest.raises(VhostBlkError, match=f"^s1: .*{says}"):
            replace_by(server, text)


def held(path: Path) -> bool:
    """Whether somebody has the image's lock."""
    probe = File(path)
    try:
        probe.open()
    except VhostBlkError:
        return True
    probe.close()
    return False


def test_disk_that_is_locked_while_running(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Under a running guest the other one is locked before it serves; the old one is let go."""
    a, b = image(tmp_path / "a", b"a"), image(tmp_path / "b", b"b")
    path = server.add(File(a, lock=LockWhen.WHILE_RUNNING))
    with pytest.raises(VhostBlkError, match="locked while running, and no guest runs here"):
        server.run(server.operations.resize("s1", 2 * MIB))
    guest = vhost_user_guest(path)
    assert until(lambda: held(a))
    reader = File(b)
    reader.open()
    with pytest.raises(VhostBlkError, match=r"^s1: .*in use"):
        replace_by(server, f"file:{b},lock=while-running")
    assert guest.read(0, 512) == b"a" * 512
    reader.close()
    replace_by(server, f"file:{b},lock=while-running")
    assert (held(a), held(b)) == (False, True)
    assert guest.read(0, 512) == b"b" * 512
    server.run(server.operations.resize("s1", 2 * MIB))
    guest.stop()
    assert not held(b)
    replace_by(server, f"file:{a},lock=while-running")
    assert (held(a), held(b)) == (False, False)
    guest.start()
    assert guest.read(0, 512) == b"a" * 512
    assert held(a)
    replace_by(server, str(b))
    guest.stop()
    assert (held(a), held(b)) == (False, True)


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
