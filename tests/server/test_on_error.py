"""A disk that fails under a guest: told of, or stopped until an operator has helped."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from server_kit.disks import Ram
from server_kit.engine import FakeQueue
from server_kit.serving import Serving, serving, until
from server_kit.translated import PAGE, table

import vhostblk
from vhostblk.disk.file import File
from vhostblk.engine.api import OnError, Op, Stall
from vhostblk.errors import VhostBlkError
from vhostblk.guest.blk import BlkTicket, Request
from vhostblk.guest.guest import Guest
from vhostblk.server import parting
from vhostblk.server.log import Log, Told
from vhostblk.server.status import status
from vhostblk.server.troubles import Troubles
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
MIB = 1 << 20
X = bytes(range(256)) * 16
FULL = Stall(op=Op.WRITE, offset=8192, length=4096, errno=errno.ENOSPC)


class Failing(Ram):
    """Fails writes with `code` while there is one; every call is noted."""

    def __init__(self, code: int = errno.EIO) -> None:
        super().__init__()
        self.code = code

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        if self.code:
            self.calls.append(("failed", offset))
            raise OSError(self.code, os.strerror(self.code))
        super().write(offset, views)


@pytest.fixture
def server() -> Iterator[Serving]:
    """Run a server with the C core."""
    with serving("native") as running:
        yield running


def wait(guest: Guest, *tickets: BlkTicket) -> list[int]:
    """Return the statuses of requests."""
    return [guest.wait(ticket).status for ticket in tickets]


def is_stalled(server: Serving) -> bool:
    """Tell whether the first queue of the device says so."""
    return server.ask(lambda: status(server.devices[0])["queues"][0]["stalled"]) is not None


# ---- with a guest -----------------------------------------------------------------------


def test_full_file_system_holds_the_write(
    server: Serving,
    vhost_user_guest: Connect,
    tiny_tmpfs: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The guest's write waits, an operator makes room and says go on, and every byte is there."""
    image, filler = tiny_tmpfs / "disk.img", tiny_tmpfs / "filler"
    with image.open("wb") as file:
        file.truncate(4 * MIB)
    filler.write_bytes(bytes(768 << 10))
    guest = vhost_user_guest(server.add(File(image), name="vm0", on_error=OnError.ENOSPC))
    tickets = [guest.submit(Request.write(n * 1024, X * 64)) for n in range(3)]
    assert until(lambda: is_stalled(server))
    assert not all(ticket.done for ticket in tickets)
    assert "queue 0 has stopped: WRITE of 262144 bytes at " in caplog.text
    assert "No space left on device. Make room for it. Then: vhostblk ctl resume vm0" in caplog.text

    assert server.ask(server.devices[0].resume_stalled) == 1  # too early: it stops again
    assert until(lambda: caplog.text.count("has stopped") == 2)
    filler.unlink()
    assert server.ask(server.devices[0].resume_stalled) == 1
    assert wait(guest, *tickets) == [Status.OK] * 3
    content = image.read_bytes()
    assert [content[n << 19 : (n << 19) + len(X) * 64] for n in range(3)] == [X * 64] * 3
    assert not is_stalled(server)


def test_disk_in_python_is_asked_again(server: Serving, vhost_user_guest: Connect) -> None:
    """In a job of its own, as the first one's views are gone; what came behind it comes behind."""
    disk = Failing()
    guest = vhost_user_guest(server.add(disk, on_error=OnError.STOP))
    write = guest.submit(Request.write(8, X))
    assert until(lambda: is_stalled(server))
    read = guest.submit(Request.read(8, 4096))
    disk.code = 0
    assert ("read", 4096) not in disk.calls
    assert server.ask(server.devices[0].resume_stalled) == 1
    assert wait(guest, write) == [Status.OK]
    assert guest.wait(read).data == X
    assert disk.calls.count(("failed", 4096)) == 1
    assert server.ask(server.devices[0].resume_stalled) == 0


def test_guest_that_stops_meanwhile_is_told_at_the_deadline(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """A stop waits for an operator as long as for any request, then it is an error after all."""
    disk = Failing()
    guest = vhost_user_guest(server.add(disk, on_error=OnError.STOP, drain_seconds=0.1))
    ticket = guest.submit(Request.write(0, X))
    assert until(lambda: is_stalled(server))
    guest.stop()
    assert wait(guest, ticket) == [Status.IOERR]
    disk.code = 0
    guest.start()
    guest.write(0, X)
    assert guest.read(0, 4096) == X


def test_front_end_that_leaves_meanwhile_leaves_nothing(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """The next one is served as if nothing had been; an operator who comes late finds nothing."""
    disk = Failing()
    path = server.add(disk, on_error=OnError.STOP, drain_seconds=0.1)
    guest = vhost_user_guest(path)
    guest.submit(Request.write(0, X))
    assert until(lambda: is_stalled(server))
    guest.close()
    disk.code = 0
    following = vhost_user_guest(path)
    following.write(8, X)
    assert following.read(8, 4096) == X
    assert server.ask(server.devices[0].resume_stalled) == 0


def test_iommu_does_not_wait_for_an_operator(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that a held write uses is taken back in bounded time; the write is done in the end."""
    monkeypatch.setattr(parting, "INVALIDATE_SECONDS", 0.05)
    disk = Failing()
    path = server.add(disk, on_error=OnError.STOP)
    with Guest.connect(path, iommu="page") as guest:
        ticket = guest.submit(Request.write(8, X))
        assert until(lambda: is_stalled(server))
        table(guest).invalidate(ticket.shown[1].gpa // PAGE * PAGE, PAGE)
        assert server.ask(lambda: status(server.devices[0])["iotlb_late"]) == 1
        disk.code = 0
        assert server.ask(server.devices[0].resume_stalled) == 1
        assert wait(guest, ticket) == [Status.OK]
        assert disk.data[4096:8192] == X


def test_end_of_the_server_waits_no_longer_than_for_any_request(
    vhost_user_guest: Connect,
) -> None:
    """SIGTERM while a queue has stopped: the deadline, then all ends cleanly."""
    disk = Failing()
    with serving("native") as running:
        guest = vhost_user_guest(running.add(disk, on_error=OnError.STOP, drain_seconds=0.1))
        guest.submit(Request.write(0, X))
        assert until(lambda: is_stalled(running))
    assert disk.calls[-1] == ("close",)


def test_reported_errors_are_told_a_few_times(
    server: Serving, vhost_user_guest: Connect, tiny_tmpfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With what failed and why, however often a guest tries."""
    image = tiny_tmpfs / "disk.img"
    with image.open("wb") as file:
        file.truncate(4 * MIB)
    (tiny_tmpfs / "filler").write_bytes(bytes(MIB))
    guest = vhost_user_guest(server.add(File(image)))
    for _ in range(5 * Told.BURST):
        assert guest.run(Request.write(8, X)).status == Status.IOERR
    line = "queue 0: WRITE of 4096 bytes at 4096 failed: No space left on device"
    assert until(lambda: caplog.text.count(line) == Told.BURST)
    assert server.ask(lambda: status(server.devices[0])["queues"][0]["counters"]["errors"]) == 80
    assert caplog.text.count(line) == Told.BURST


def test_disk_in_python_fills_no_log(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """What it raises is told of as often as a file's errors are."""
    guest = vhost_user_guest(server.add(Failing()))
    for _ in range(3 * Told.BURST):
        assert guest.run(Request.write(8, X)).status == Status.IOERR
    assert caplog.text.count("WRITE of 4096 bytes at 4096 failed: ") == Told.BURST


# ---- by hand ----------------------------------------------------------------------------


def watched(
    policy: OnError = OnError.STOP, clock: Callable[[], float] = lambda: 0.0
) -> tuple[Troubles, list[FakeQueue]]:
    """Return the troubles of a device with three queues."""
    troubles = Troubles("vm0", policy, Log("vhostblk.test", "vm0"), clock=clock)
    queues = [FakeQueue(index, lambda: None, None) for index in range(3)]
    for index, queue in enumerate(queues):
        troubles.watch(index, queue)
    return troubles, queues


def stall(queue: FakeQueue, why: Stall = FULL) -> None:
    """Have a queue stop."""
    queue.stalled = why
    assert queue.on_stalled is not None
    queue.on_stalled(why)


def test_only_stalled_queues_are_resumed() -> None:
    """And none that was dropped meanwhile, though another has its number."""
    troubles, queues = watched()
    assert {queue.policy for queue in queues} == {OnError.STOP}
    stall(queues[0])
    stall(queues[2])
    troubles.forget(queues[0])
    following = FakeQueue(0, lambda: None, None)
    troubles.watch(0, following)
    assert troubles.resume() == 1
    assert [queue.resumed for queue in [*queues, following]] == [0, 0, 1, 0]
    assert troubles.resume() == 0


def test_lines_say_what_was_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """Those over the allowance are counted, and the next line has their number."""
    now = 0.0
    _, queues = watched(OnError.REPORT, lambda: now)
    failed = queues[1].on_failed
    assert failed is not None
    for _ in range(Told.BURST + 5):
        failed(FULL)
    assert caplog.text.count("queue 1: WRITE of 4096 bytes at 8192 failed: No space") == Told.BURST
    now = 60.0
    failed(FULL)
    assert "No space left on device (5 before were not told of)" in caplog.text


def test_any_other_error_wants_the_disk_mended(caplog: pytest.LogCaptureFixture) -> None:
    """There is no room to make where a cable is out."""
    _, queues = watched()
    stall(queues[1], Stall(op=Op.FLUSH, offset=0, length=0, errno=errno.EIO))
    assert "queue 1 has stopped: FLUSH of 0 bytes at 0 failed: Input/output error." in caplog.text
    assert " Mend the disk. Then: vhostblk ctl resume vm0" in caplog.text


@pytest.mark.parametrize("policy", ["stop", "enospc"])
def test_what_stops_wants_somebody_to_resume(policy: str, tmp_path: Path) -> None:
    """Without a control socket the guest's disk would stop for ever."""
    with pytest.raises(VhostBlkError, match="give a control socket"):
        vhostblk.serve(Ram(), tmp_path / "s", on_error=policy)  # type: ignore[arg-type]
    with pytest.raises(VhostBlkError, match="on_error"):
        vhostblk.serve(Ram(), tmp_path / "s", on_error="pause")  # type: ignore[arg-type]
