import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from server_kit.disks import SIZE, Failing, Keeper, Ram, Slow, Stuck
from server_kit.left import fake_guests, open_fds, threads
from server_kit.serving import Serving, names, serving, until

from vhostblk.disk.file import File
from vhostblk.disk.memory import Memory
from vhostblk.disk.null import Null
from vhostblk.engine.choose import EngineName
from vhostblk.errors import VhostBlkError
from vhostblk.guest.blk import Range, Request
from vhostblk.guest.errors import BrokenQueueError, GuestError, StatusError
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.guest import Guest
from vhostblk.guest.layout import Region
from vhostblk.guest.memory import GuestMemory
from vhostblk.server import device
from vhostblk.spec.vhost_user import ProtocolFeature
from vhostblk.spec.virtio_blk import CONFIG_WRITEBACK_OFFSET, F_FLUSH, Status

Connect = Callable[..., Guest]
X, Y = b"x" * 4096, b"y" * 4096


def _left() -> tuple[int, int, int]:
    """Return guest mappings, descriptors and threads; collects garbage first."""
    return fake_guests(), open_fds(), threads()


def _image(directory: Path) -> Path:
    image = directory / "disk.img"
    image.write_bytes(bytes(SIZE))
    return image


DISKS: dict[str, Callable[[Path], object]] = {
    "memory": lambda _: Memory(SIZE),
    "file": lambda directory: File(_image(directory)),
    "plain": lambda _: Ram(),
    "async": lambda _: Slow(),
}


def test_a_null_disk_forgets(server: Serving, vhost_user_guest: Connect) -> None:
    """The null disk takes everything and reads as zeroes."""
    guest = vhost_user_guest(server.add(Null(SIZE)))
    guest.write(0, X)
    assert guest.read(0, 4096) == bytes(4096)


@pytest.mark.parametrize("kind", DISKS)
def test_what_is_written_is_read(
    kind: str, server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Every kind of disk gives back on one queue what was written on another."""
    guest = vhost_user_guest(server.add(DISKS[kind](tmp_path), num_queues=2), queues=2)
    guest.write(0, X, queue=0)
    guest.write(8, Y, queue=1)
    guest.flush()
    assert guest.read(0, 8192, queue=1) == X + Y
    guest.write_zeroes([Range(4, 8)])
    assert guest.read(0, 8192) == X[:2048] + bytes(4096) + Y[:2048]


def test_the_device_says_what_was_asked_for(server: Serving, vhost_user_guest: Connect) -> None:
    """Serial, queues, block size and capacity reach the guest."""
    options = {"serial": "S-1", "num_queues": 3, "block_size": 4096}
    guest = vhost_user_guest(server.add(Memory(SIZE), **options), queues=3)
    config = guest.config()
    assert guest.get_id() == b"S-1"
    assert (config.capacity, config.blk_size, config.num_queues) == (SIZE // 512, 4096, 3)
    with pytest.raises(StatusError):
        guest.read(1, 512)


def test_a_read_only_device_refuses_writes(server: Serving, vhost_user_guest: Connect) -> None:
    """OUT ends with IOERR, and the disk never hears of it."""
    disk = Ram()
    guest = vhost_user_guest(server.add(disk, read_only=True))
    with pytest.raises(StatusError):
        guest.write(0, X)
    assert guest.read(0, 4096) == bytes(4096)
    assert "write" not in names(disk.calls)


def test_a_python_disk_lives_on_its_own_thread(server: Serving, vhost_user_guest: Connect) -> None:
    """Open, requests, the last flush and close are all called on one thread of the disk's."""
    disk = Ram()
    path = server.add(disk)
    vhost_user_guest(path).write(0, X)
    server.stop()
    assert disk.threads == {f"disk {path.name}"}
    assert names(disk.calls)[0] == "open"
    assert names(disk.calls)[-2:] == ["flush", "close"]


def test_memory_comes_and_goes_while_requests_run(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """A plugged region holds buffers at once; unplugged, its mapping is gone and I/O goes on."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), timeout=5)
    before = fake_guests()
    plugged = Region(1 << 32, 1 << 20)
    guest.add_region(plugged)
    guest.write(0, X)
    assert fake_guests() == before + 2  # the guest's and ours
    guest.remove_region(plugged.gpa)
    assert fake_guests() == before
    assert guest.read(0, 4096) == X


def test_many_regions_and_whole_tables(server: Serving, vhost_user_guest: Connect) -> None:
    """Without slots the table comes whole; requests may lie in any of its regions."""
    regions = tuple(Region(at << 24, 1 << 20) for at in range(8))
    with GuestMemory(regions) as memory:
        some = ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG | ProtocolFeature.MQ
        path = server.add(Memory(SIZE))
        guest = vhost_user_guest(path, memory=memory, protocol_features=some)
        for sector in range(0, 64, 8):
            guest.write(sector, bytes([sector]) * 4096)
        for sector in range(0, 64, 8):
            assert guest.read(sector, 4096) == bytes([sector]) * 4096


def test_a_stopped_guest_goes_on_where_it_was(server: Serving, vhost_user_guest: Connect) -> None:
    """Stop gives the base; start and reboot serve again, from there and from 0."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), base=65530)
    for _ in range(10):
        guest.write(0, X)
    assert guest.stop() == {0: (65530 + 10) % 65536}
    guest.start()
    assert guest.read(0, 4096) == X
    guest.reboot(features=guest.features & ~F_FLUSH)
    assert guest.read(0, 4096) == X


def test_without_write_cache_every_write_is_stable(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """After the guest wrote 0 to writeback a write is flushed before its status."""
    disk = Ram()
    guest = vhost_user_guest(server.add(disk))
    guest.write(0, X)
    assert names(disk.calls) == ["open", "write"]
    guest.write_config(CONFIG_WRITEBACK_OFFSET, b"\0")
    assert names(disk.calls) == ["open", "write", "flush"]
    guest.write(0, Y)
    guest.discard([Range(0, 8)])
    assert names(disk.calls)[3:] == ["write", "flush", "discard", "flush"]
    guest.write_config(CONFIG_WRITEBACK_OFFSET, b"\1")
    guest.write(0, Y)
    assert names(disk.calls)[-1] == "write"


@pytest.mark.parametrize("error", [OSError(28, "full"), ValueError("bug"), KeyboardInterrupt()])
def test_a_disk_that_raises_fails_one_request(
    error: BaseException,
    server: Serving,
    vhost_user_guest: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever a disk raises is IOERR and a log line; the next request is served."""
    disk = Failing()
    guest = vhost_user_guest(server.add(disk))
    disk.error = error
    with pytest.raises(StatusError) as failed:
        guest.write(0, X)
    assert failed.value.status == Status.IOERR
    assert "WRITE of 4096 bytes at 0" in caplog.text
    disk.error = None
    guest.write(0, X)
    assert guest.read(0, 4096) == X


def test_a_disk_that_keeps_a_view_breaks_its_queue(
    server: Serving,
    vhost_user_guest: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The queue is broken, others serve; the memory stays mapped as long as the disk has it."""
    caplog.set_level("INFO", logger="vhostblk")
    monkeypatch.setattr(device, "EXHUME_SECONDS", 0.02)
    disk = Keeper()
    before = fake_guests()
    guest = vhost_user_guest(server.add(disk, num_queues=2), queues=2)
    with pytest.raises((BrokenQueueError, StatusError)):
        guest.read(0, 4096, queue=0)
    guest.queues[0].wait_broken(5)
    guest.write(0, X, queue=1)
    guest.close()
    served = server.devices[0]
    assert until(lambda: server.ask(served.dead) == 1)
    assert "kept guest memory" in caplog.text
    assert until(lambda: "queue 0 is broken: disk kept a view of guest memory" in caplog.text)
    assert until(lambda: "the front-end is gone" in caplog.text)
    assert fake_guests() == before + 1
    disk.kept.clear()
    assert until(lambda: fake_guests() == before)


def test_one_front_end_at_a_time_and_the_next_waits(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """A second connection succeeds, is answered when the first one leaves, and not before."""
    path = server.add(Memory(SIZE))
    first = vhost_user_guest(path)
    second: list[bytes] = []

    def connect() -> None:
        with Guest.connect(path) as guest:
            second.append(guest.read(0, 4096))

    waiting = threading.Thread(target=connect)
    waiting.start()
    first.write(0, X)
    assert not second
    first.close()
    waiting.join(10)
    assert second == [X]


def test_a_front_end_that_errs_harms_nobody_else(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Noise on the socket is hung up on with one line; the device listens on."""
    path = server.add(Memory(SIZE))
    for noise in (b"GET / HTTP/1.0\r\n\r\n", bytes(4096), b"\xff" * 12):
        frontend = FrontEnd.connect(path)
        frontend.send_raw(noise)
        frontend.connection.expect_close()
        frontend.close()
    guest = vhost_user_guest(path)
    guest.write(0, X)
    assert caplog.text.count("the front-end erred") == 3


def test_devices_do_not_wait_for_each_other(server: Serving, vhost_user_guest: Connect) -> None:
    """While one device drains a request that hangs, another one starts, serves and stops."""
    slow = Slow()
    hanging = vhost_user_guest(server.add(slow))
    slow.set(free=False)
    hanging.submit(Request.read(0, 512))
    assert until(lambda: slow.waiting == 1)
    bases: list[dict[int, int]] = []
    stopping = threading.Thread(target=lambda: bases.append(hanging.stop()))
    stopping.start()
    with Guest.connect(server.add(Memory(SIZE))) as other:
        other.write(0, X)
        other.stop()
    assert not bases
    slow.set(free=True)
    stopping.join(10)
    assert bases == [{0: 1}]


def test_a_drain_gives_up_in_time(server: Serving, vhost_user_guest: Connect) -> None:
    """At the deadline the request is cancelled in the disk, fails in the guest, and is counted."""
    slow = Slow()
    guest = vhost_user_guest(server.add(slow, drain_seconds=0.05))
    slow.set(free=False)
    ticket = guest.submit(Request.read(0, 512))
    assert until(lambda: slow.waiting == 1)
    assert guest.stop() == {0: 1}
    assert guest.wait(ticket).status == Status.IOERR
    assert until(lambda: slow.cancelled == 1)
    assert until(lambda: server.ask(server.devices[0].dead) == 0)
    slow.set(free=True)
    guest.start()
    assert guest.read(0, 512) == bytes(512)


def test_a_front_end_killed_with_requests_in_flight_leaves_nothing(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Descriptors, threads and mappings are what they were, and the next front-end is served."""
    slow = Slow()
    path = server.add(slow, num_queues=2)
    none = fake_guests()
    vhost_user_guest(path, queues=2).close()  # workers are made at the first use
    served = server.devices[0]
    assert until(lambda: fake_guests() == none)  # the last thing to go
    before = _left()
    guest = vhost_user_guest(path, queues=2)
    slow.set(free=False)
    for queue in (0, 1):
        for sector in range(8):
            guest.submit(Request.write(sector, X[:512]), queue=queue)
    assert until(lambda: slow.waiting == 16)
    guest.close()
    slow.set(free=True)
    with Guest.connect(path) as after:
        assert after.read(0, 512) == X[:512]
    assert until(lambda: _left() == before)
    assert server.ask(served.dead) == 0


def _rounds(engine: EngineName, rounds: int) -> None:
    with serving(engine) as server:
        path = server.add(Ram(), num_queues=2)
        kept = GuestMemory()
        alone = fake_guests()
        left = (0, 0, 0)
        for number in range(rounds):
            with Guest.connect(path, queues=2, memory=kept) as guest:
                guest.write(0, X)
                guest.submit(Request.read(0, 4096), queue=1)
            if number == 1:
                Guest.connect(path, memory=kept).close()
                assert until(lambda: fake_guests() == alone)
                left = _left()
        assert until(lambda: _left() == left)
        kept.close()


def test_a_dozen_connections_leave_nothing(engine: EngineName) -> None:
    """No descriptor, thread or mapping is left of 12 rounds with I/O."""
    _rounds(engine, 12)


@pytest.mark.slow
def test_a_thousand_connections_leave_nothing(engine: EngineName) -> None:
    """No descriptor, thread or mapping is left of 1,000 rounds with I/O."""
    _rounds(engine, 1000)


def test_a_disk_that_never_returns_does_not_stop_the_end(
    engine: EngineName,
    vhost_user_guest: Connect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plain method that hangs delays the shutdown by a drain and little more; it is logged."""
    monkeypatch.setattr(device, "STUCK_SECONDS", 0.02)
    disk = Stuck()

    def end_while_stuck() -> None:
        with serving(engine) as server:
            guest = vhost_user_guest(server.add(disk, drain_seconds=0.05))
            guest.submit(Request.read(0, 512))
            assert disk.stuck.wait(10)

    try:
        with pytest.raises(VhostBlkError, match="the last flush failed"):
            end_while_stuck()
    finally:
        disk.let_go.set()
    assert "1 requests never came back from the disk" in caplog.text


def test_the_end_flushes_and_hangs_up(server: Serving, vhost_user_guest: Connect) -> None:
    """The server ends with a guest attached: drained, flushed, and the socket file is gone."""
    disk = Ram()
    path = server.add(disk)
    guest = vhost_user_guest(path, timeout=0.2)
    guest.write(0, X)
    server.stop()
    assert names(disk.calls)[-2:] == ["flush", "close"]
    assert not path.exists()
    with pytest.raises(GuestError):
        guest.read(0, 512)


def test_a_last_flush_that_fails_is_told(engine: EngineName) -> None:
    """Ending without stable writes is an error, though everything is closed."""

    class Bad(Ram):
        def flush(self) -> None:
            raise OSError(5, "no")

    with pytest.raises(VhostBlkError, match="the last flush failed"), serving(engine) as server:
        server.add(Bad())


def test_a_disk_that_cannot_be_opened_is_told(server: Serving) -> None:
    """What `open` raises reaches who asked; thread and socket are gone."""

    class Missing(Ram):
        def open(self) -> None:
            raise VhostBlkError("no such image: create it")

    before = threads()
    with pytest.raises(VhostBlkError, match="create it"):
        server.add(Missing())
    assert until(lambda: threads() == before)
