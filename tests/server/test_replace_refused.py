"""Disks that cannot take another one's place: the old one goes on, and nothing is left of them."""

import errno
import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from server_kit.disks import Slow, Stuck
from server_kit.left import open_fds, threads
from server_kit.replacing import MIB, SECTORS, Full, X, image, replace, replace_by
from server_kit.serving import Serving, until

from vhostblk.disk.api import DiskInfo
from vhostblk.disk.file import File
from vhostblk.disk.memory import Memory
from vhostblk.disk.null import Null
from vhostblk.engine.api import Queue
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, Request, StatusError
from vhostblk.guest.errors import GuestError
from vhostblk.server.attachment import Attachment
from vhostblk.server.backing import Backing
from vhostblk.spec.virtio_blk import F_RO, Status

Connect = Callable[..., Guest]


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
