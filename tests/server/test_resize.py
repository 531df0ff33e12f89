"""A device gets another size while its guest uses it: what the guest sees, what the disk holds."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from server_kit.disks import Ram, Slow, Stuck, made
from server_kit.serving import Serving, until

from vhostblk.disk.file import File
from vhostblk.disk.memory import Memory
from vhostblk.disk.null import Null
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, Request, StatusError
from vhostblk.guest.channel import BackendChannel
from vhostblk.guest.errors import DeadlineError
from vhostblk.server.jsonrpc import Json
from vhostblk.spec.vhost_user import BackendRequest, ProtocolFeature
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
MIB = 1 << 20
SECTORS = MIB // 512
X, Y = b"x" * 4096, b"y" * 4096


class Growing(Ram):
    """A Python disk that can have another size."""

    def resize(self, size: int) -> None:
        self._note("resize", size)
        self.data[size:] = bytes(max(0, size - len(self.data)))


KINDS = ("file", "memory", "python")


def resize(server: Serving, size: int | None = None, device: str = "s1") -> Json:
    return server.run(server.operations.resize(device, size))


def told(channel: BackendChannel) -> BackendRequest:
    """What the back-end says next."""
    message = channel.receive()
    assert not message.flags & 8, "an ack would have to wait for our GET_CONFIG"
    assert message.payload == b""
    return BackendRequest(message.request)


def nothing_is_told(channel: BackendChannel) -> None:
    with pytest.raises(DeadlineError):
        channel.receive(0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_grown_disk_is_all_there_at_once(
    kind: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """The guest is told, reads the new size, and uses what was added, which is zeroes."""
    guest = vhost_user_guest(server.add(made(kind, tmp_path, Growing), num_queues=2), queues=2)
    guest.write(SECTORS - 8, X)
    with pytest.raises(StatusError):
        guest.write(SECTORS, X)
    assert resize(server, 3 * MIB) == {"size": 3 * MIB}
    assert told(guest.channel) is BackendRequest.CONFIG_CHANGE_MSG
    assert guest.config().capacity == 3 * SECTORS
    for queue in (0, 1):
        assert guest.read(SECTORS - 8, 8192, queue=queue) == X + bytes(4096)
        guest.write(3 * SECTORS - 8, Y, queue=queue)
    assert guest.read(3 * SECTORS - 8, 4096) == Y
    with pytest.raises(StatusError):
        guest.write(3 * SECTORS, X)
    nothing_is_told(guest.channel)
    if kind == "file":
        assert (tmp_path / "disk.img").stat().st_size == 3 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_shrunk_disk_ends_where_it_is_told(
    kind: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Requests behind the new end fail and touch nothing; what is cut off is zeroes afterwards."""
    guest = vhost_user_guest(server.add(made(kind, tmp_path, Growing), num_queues=2), queues=2)
    guest.write(0, X)
    guest.write(SECTORS - 8, X, queue=1)
    assert resize(server, MIB // 2) == {"size": MIB // 2}
    assert told(guest.channel) is BackendRequest.CONFIG_CHANGE_MSG
    assert guest.config().capacity == SECTORS // 2
    for queue in (0, 1):
        with pytest.raises(StatusError):
            guest.read(SECTORS // 2 - 1, 1024, queue=queue)
        with pytest.raises(StatusError):
            guest.write(SECTORS - 8, Y, queue=queue)
        assert guest.read(0, 4096, queue=queue) == X
    resize(server, MIB)
    assert guest.read(SECTORS // 2, MIB // 2) == bytes(MIB // 2)
    assert guest.read(0, 4096) == X


def test_part_of_a_page_that_was_cut_off_is_zeroes(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Memory is cut by the page, a disk by the sector."""
    guest = vhost_user_guest(server.add(Memory(8192)))
    guest.write(0, X + X)
    resize(server, 1536)
    resize(server, 8192)
    assert guest.read(0, 8192) == X[:1536] + bytes(8192 - 1536)


@pytest.mark.parametrize("kind", KINDS)
def test_size_changes_under_load(
    kind: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Requests in the part that stays are all served, whatever becomes of the rest meanwhile."""
    guest = vhost_user_guest(server.add(made(kind, tmp_path, Growing), num_queues=2), queues=2)
    done = threading.Event()
    failures: list[BaseException] = []

    def load() -> None:
        try:
            for i in range(100_000):
                block = bytes([i % 255 + 1]) * 4096
                tickets = [
                    guest.submit(Request.write(8 * j, block), queue=j % 2) for j in range(16)
                ]
                assert all(guest.wait(ticket).status == Status.OK for ticket in tickets)
                assert guest.read(0, 16 * 4096) == block * 16
                if done.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    loader = threading.Thread(target=load)
    loader.start()
    try:
        for size in (4 * MIB, MIB // 2, 2 * MIB, MIB // 4, MIB):
            assert resize(server, size) == {"size": size}
    finally:
        done.set()
        loader.join()
    assert failures == []
    assert [told(guest.channel) for _ in range(5)] == [BackendRequest.CONFIG_CHANGE_MSG] * 5


def test_shrinking_waits_for_what_is_under_way(server: Serving, vhost_user_guest: Connect) -> None:
    """A request that was taken ends before its part of the disk goes."""

    class Shrinking(Slow):
        def resize(self, size: int) -> None:
            assert not self.waiting
            del self.data[size:]

    slow = Shrinking()
    guest = vhost_user_guest(server.add(slow, drain_seconds=10.0))
    slow.set(free=False)
    ticket = guest.submit(Request.write(SECTORS - 8, X))
    assert until(lambda: slow.waiting == 1)
    shrinking = threading.Thread(target=resize, args=(server, MIB // 2))
    shrinking.start()
    slow.set(free=True)
    shrinking.join()
    assert guest.wait(ticket).status == Status.OK
    assert len(slow.data) == MIB // 2


def test_shrinking_is_refused_while_the_disk_has_dead_requests(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """What was given up may still be carried out, behind the new end: nothing is cut off."""

    class Bad(Stuck):
        def resize(self, size: int) -> None:
            raise AssertionError(size)

    stuck = Bad()
    guest = vhost_user_guest(server.add(stuck, drain_seconds=0.05))
    try:
        guest.submit(Request.read(SECTORS - 8, 4096))
        assert stuck.stuck.wait(10)
        with pytest.raises(VhostBlkError, match=r"^s1: 1 requests were given up"):
            resize(server, MIB // 2)
    finally:
        stuck.let_go.set()
    assert guest.config().capacity == SECTORS
    assert guest.read(SECTORS - 8, 4096) == bytes(4096)


@pytest.mark.parametrize("kind", KINDS)
def test_size_between_two_front_ends(
    kind: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Nobody is told; the next one finds it, and the bytes of the one before."""
    path = server.add(made(kind, tmp_path, Growing))
    resize(server, 2 * MIB)
    with Guest.connect(path) as guest:
        assert guest.config().capacity == 2 * SECTORS
        guest.write(2 * SECTORS - 8, X)
    assert until(lambda: not server.devices[0].holders)
    resize(server, 4 * MIB)
    after = vhost_user_guest(path)
    assert after.config().capacity == 4 * SECTORS
    assert after.read(2 * SECTORS - 8, 8192) == X + bytes(4096)


@pytest.mark.parametrize(
    "lacks", [ProtocolFeature.BACKEND_REQ, ProtocolFeature.CONFIG], ids=["BACKEND_REQ", "CONFIG"]
)
def test_front_end_that_cannot_be_told(
    lacks: ProtocolFeature,
    server: Serving,
    vhost_user_guest: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The size changes all the same, and the log says how the guest can learn of it."""
    path = server.add(Memory(MIB))
    wanted = ~lacks & ProtocolFeature(0x1A229)
    guest = vhost_user_guest(path, protocol_features=wanted)
    resize(server, 2 * MIB)
    assert "device-sync-config" in caplog.text
    guest.write(2 * SECTORS - 8, X)
    assert guest.read(2 * SECTORS - 8, 4096) == X


def test_nothing_new_is_not_told(server: Serving, vhost_user_guest: Connect) -> None:
    """The same size again, asked for or looked at, disturbs nobody."""
    guest = vhost_user_guest(server.add(Memory(MIB)))
    assert resize(server, MIB) == {"size": MIB}
    assert resize(server) == {"size": MIB}
    nothing_is_told(guest.channel)


def test_file_that_somebody_else_resized(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Without a size the device looks at its disk: a read-only one, too, which it cannot resize."""
    image = tmp_path / "disk.img"
    image.write_bytes(X * 256)
    guest = vhost_user_guest(server.add(File(image, read_only=True), read_only=True))
    with pytest.raises(VhostBlkError, match="it is read-only, and so is its size"):
        resize(server, 2 * MIB)
    assert image.stat().st_size == MIB
    with image.open("ab") as file:
        file.write(Y * 256)
    assert resize(server) == {"size": 2 * MIB}
    assert told(guest.channel) is BackendRequest.CONFIG_CHANGE_MSG
    assert guest.read(SECTORS - 8, 8192) == X + Y
    with image.open("ab") as file:
        file.truncate(MIB + 100)
    with pytest.raises(VhostBlkError, match="is not a multiple of its 512-byte blocks"):
        resize(server)
    with image.open("ab") as file:
        file.truncate(MIB // 2)
    assert resize(server) == {"size": MIB // 2}
    with pytest.raises(StatusError):
        guest.read(SECTORS - 8, 4096)


def test_block_device_has_the_size_it_has(server: Serving, loop_device: Path) -> None:
    """It is looked at, and not resized."""
    server.add(File(loop_device))
    size = server.devices[0].blk.capacity_sectors * 512
    assert resize(server) == {"size": size}
    with pytest.raises(VhostBlkError, match="a block device has the size it has"):
        resize(server, size * 2)
    assert server.devices[0].blk.capacity_sectors * 512 == size


@pytest.mark.parametrize("size", [0, -512, 513, 512, 1 << 63, 1 << 80])
def test_size_that_no_disk_has_is_refused(size: int, server: Serving) -> None:
    """Whole blocks of the guest's, at least one, less than 8 EiB."""
    server.add(Memory(MIB), block_size=4096)
    with pytest.raises(VhostBlkError, match=r"^s1: "):
        resize(server, size)
    assert server.devices[0].blk.capacity_sectors == SECTORS


def test_disk_without_resize_keeps_its_size(server: Serving, vhost_user_guest: Connect) -> None:
    """It is said which disk that is; looking at it works, whatever its size is then."""
    ram = Ram(MIB)
    guest = vhost_user_guest(server.add(ram))
    with pytest.raises(VhostBlkError, match=r"^s1: Ram has no method resize"):
        resize(server, 2 * MIB)
    ram.data.extend(X)
    assert resize(server) == {"size": MIB + 4096}
    assert guest.read(SECTORS, 4096) == X


@contextmanager
def limited(server: Serving, error: Exception) -> Iterator[type[Ram]]:
    """A disk whose resize fails."""

    class Failing(Growing):
        def resize(self, size: int) -> None:  # noqa: ARG002
            raise error  # whatever *size* is

    yield Failing
    assert server.devices[0].blk.capacity_sectors == SECTORS


@pytest.mark.parametrize("size", [MIB // 2, 2 * MIB])
@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "s1: the disk cannot resize: No space left"),
        (VhostBlkError("not this one"), "s1: not this one"),
        (ZeroDivisionError("oh"), "s1: the disk raised in resize: ZeroDivisionError: oh"),
    ],
)
def test_resize_that_fails_changes_nothing(
    size: int, error: Exception, says: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """The guest goes on with all it had, and hears of nothing."""
    with limited(server, error) as failing:
        guest = vhost_user_guest(server.add(failing(MIB)))
        guest.write(SECTORS - 8, X)
        with pytest.raises(VhostBlkError, match=says):
            resize(server, size)
        assert guest.read(SECTORS - 8, 4096) == X
        assert guest.config().capacity == SECTORS
        nothing_is_told(guest.channel)


def test_file_system_without_room_is_told(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """A file cannot be longer than its file system's longest."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(MIB))
    guest = vhost_user_guest(server.add(File(image)))
    with pytest.raises(VhostBlkError, match="s1: the disk cannot resize: File too large"):
        resize(server, (1 << 63) - 512)
    guest.write(SECTORS - 8, X)
    assert image.stat().st_size == MIB


def test_null_disk_of_another_size(server: Serving, vhost_user_guest: Connect) -> None:
    """It has as much nothing as is asked for."""
    guest = vhost_user_guest(server.add(Null(MIB)))
    resize(server, 1 << 50)
    assert guest.config().capacity == 1 << 41
    assert guest.read((1 << 41) - 8, 4096) == bytes(4096)


def test_front_end_that_never_reads_its_channel(server: Serving, vhost_user_guest: Connect) -> None:
    """Telling it waits for nothing, however often."""
    guest = vhost_user_guest(server.add(Memory(MIB)))
    for i in range(300):
        resize(server, MIB * (1 + i % 2))
    guest.write(0, X)
    assert guest.read(0, 4096) == X
