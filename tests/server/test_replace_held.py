"""Another disk while an error holds requests: they begin anew on that one."""

import errno
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from server_kit.disks import Failing, Ram, Slow, Stuck
from server_kit.replacing import X, Y, replace
from server_kit.serving import Serving, until

from vhostblk.disk.file import File
from vhostblk.engine.api import OnError
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, Request
from vhostblk.guest.blk import BlkTicket
from vhostblk.guest.negotiate import DEFAULT_PROTOCOL_FEATURES
from vhostblk.server.status import QueueStatus, status
from vhostblk.spec.vhost_user import ProtocolFeature
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
KINDS = [(packed, in_order) for packed in (False, True) for in_order in (False, True)]
NAMES = ["split", "split in order", "packed", "packed in order"]


class Broken(Failing):
    """Fails every write, and each flush while it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.error = OSError(errno.EIO, "broken")
        self.flushes = True

    def flush(self) -> None:
        if not self.flushes:
            raise OSError(errno.EIO, "broken")
        super().flush()


class BrokenAndStuck(Stuck):
    """Fails writes, and does not return from reads until it is let go."""

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        raise OSError(errno.EIO, f"broken at {offset} for {len(views)}")


class Pausing(Slow):
    """Lets requests pass when it is told so; then writes fail all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.data[:] = b"o" * len(self.data)

    async def write(self, offset: int, views: Sequence[memoryview]) -> None:
        await super().write(offset, views)
        raise OSError(errno.EIO, "broken")


def queue_status(server: Serving, queue: int = 0) -> QueueStatus:
    return server.ask(lambda: status(server.devices[0])["queues"][queue])


def held(server: Serving, queue: int = 0) -> int:
    return queue_status(server, queue)["counters"]["held"]


def serve(server: Serving, disk: object, **options: object) -> Path:
    return server.add(disk, on_error=OnError.STOP, **options)


def hold(server: Serving, guest: Guest, n: int, queue: int = 0) -> list[BlkTicket]:
    """Write *n* blocks, of which the first ones at least are held and the rest waits."""
    requests = [Request.write(8 * i, bytes([i + 1]) * 4096) for i in range(n)]
    tickets = [guest.submit(request, queue=queue) for request in requests]
    assert until(lambda: queue_status(server, queue)["stalled"] is not None)
    return tickets


def check(guest: Guest, tickets: list[BlkTicket]) -> None:
    assert [guest.wait(ticket).status for ticket in tickets] == [Status.OK] * len(tickets)
    for i in range(len(tickets)):
        assert guest.read(8 * i, 4096) == bytes([i + 1]) * 4096


@pytest.mark.parametrize(("packed", "in_order"), KINDS, ids=NAMES)
def test_held_requests_are_tried_on_the_new_disk(
    packed: bool,  # noqa: FBT001
    in_order: bool,  # noqa: FBT001
    server: Serving,
    vhost_user_guest: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All succeed, each once, and so do those behind them; the guest sees no error."""
    caplog.set_level("INFO")
    old, new = Broken(), Ram()
    guest = vhost_user_guest(serve(server, old), packed=packed, in_order=in_order)
    tickets = hold(server, guest, 5)
    replace(server, new)
    check(guest, tickets)
    assert re.search(r"[1-5] requests that the old disk has failed begin anew", caplog.text)
    after = queue_status(server)
    assert (after["stalled"], after["fault"]) == (None, None)
    assert [after["counters"][name] for name in ("held", "errors", "writes")] == [0, 0, 5]
    writes = [call for call in new.calls if call[0] == "write"]
    assert sorted(writes) == [("write", 4096 * i) for i in range(5)]
    assert ("close",) in old.calls
    guest.reboot()
    guest.write(0, Y)


@pytest.mark.parametrize(("packed", "in_order"), KINDS, ids=NAMES)
def test_what_ends_well_meanwhile_is_the_old_disks(
    packed: bool,  # noqa: FBT001
    in_order: bool,  # noqa: FBT001
    server: Serving,
    vhost_user_guest: Connect,
) -> None:
    """A read under way behind a held write: waited for; in order, it is read from the new one."""
    old = Pausing()
    guest = vhost_user_guest(serve(server, old), packed=packed, in_order=in_order)
    old.set(free=False)
    write, read = guest.submit(Request.write(0, X)), guest.submit(Request.read(8, 4096))
    assert until(lambda: old.waiting == 2)
    old.set(free=True)
    new = Ram()
    new.data[4096:8192] = b"n" * 4096
    replace(server, new)
    assert guest.wait(write).status == Status.OK
    assert guest.wait(read).data == (b"n" if in_order else b"o") * 4096
    assert guest.read(0, 4096) == X


def test_queues_that_hold_nothing_go_on_beside_one_that_does(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Each is where it was, disabled ones too."""
    guest = vhost_user_guest(serve(server, Broken(), num_queues=3), queues=3)
    guest.frontend.set_vring_enable(2, enable=False)
    tickets = hold(server, guest, 3, queue=1)
    assert guest.read(0, 512) == bytes(512)
    replace(server, Ram())
    check(guest, tickets)
    waits = guest.submit(Request.read(0, 4096), queue=2)
    guest.write(0, Y)
    assert not waits.done
    guest.frontend.set_vring_enable(2, enable=True)
    assert guest.wait(waits).data == Y


def test_a_new_disk_that_fails_them_holds_them_again(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Until one takes them, or the operator has helped."""
    guest = vhost_user_guest(serve(server, Broken()))
    tickets = hold(server, guest, 3)
    helped = Broken()
    for disk in (Broken(), helped):
        replace(server, disk)
        assert until(lambda: queue_status(server)["stalled"] is not None)
    helped.error = None
    assert server.ask(server.devices[0].resume_stalled) == 1
    check(guest, tickets)


def test_a_disk_that_cannot_be_flushed_goes_on_holding(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Whatever keeps it from being replaced: nothing has changed, also what is held."""
    old = Broken()
    guest = vhost_user_guest(serve(server, old))
    tickets = hold(server, guest, 3)
    old.flushes = False
    before = held(server)
    with pytest.raises(VhostBlkError, match="cannot be flushed"):
        replace(server, Ram())
    assert held(server) == before
    old.error, old.flushes = None, True
    assert server.ask(server.devices[0].resume_stalled) == 1
    check(guest, tickets)


def test_without_an_inflight_region_they_fail(server: Serving, vhost_user_guest: Connect) -> None:
    """No queue but theirs knows of them, and that cannot wait for longer than a drain."""
    every = DEFAULT_PROTOCOL_FEATURES & ~ProtocolFeature.INFLIGHT_SHMFD
    path = serve(server, Broken(), drain_seconds=0.05)
    guest = vhost_user_guest(path, protocol_features=every)
    ticket = guest.submit(Request.write(0, X))
    assert until(lambda: held(server) == 1)
    replace(server, Ram())
    assert guest.wait(ticket).status == Status.IOERR
    guest.write(0, X)


def test_what_the_old_disk_does_not_give_back_ends_all_of_it(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Another disk cannot serve while the old one has a request, whatever is held beside it."""
    old = BrokenAndStuck()
    guest = vhost_user_guest(serve(server, old, num_queues=2, drain_seconds=0.05), queues=2)
    write = guest.submit(Request.write(0, X))
    assert until(lambda: held(server) == 1)
    read = guest.submit(Request.read(8, 4096), queue=1)
    assert old.stuck.wait(10)
    with pytest.raises(VhostBlkError, match="that the disk still has"):
        replace(server, Ram())
    assert guest.wait(read).status == Status.IOERR
    assert not write.done
    old.let_go.set()


def test_behind_an_iommu(server: Serving) -> None:
    """Translations are asked for anew, of what is taken again, too."""
    with Guest.connect(serve(server, Broken()), queue_size=64, iommu="page") as guest:
        tickets = hold(server, guest, 3)
        replace(server, Ram())
        check(guest, tickets)


def test_an_image_on_a_full_file_system_is_moved(
    server: Serving, vhost_user_guest: Connect, tiny_tmpfs: Path, tmp_path: Path
) -> None:
    """What an operator does who has no room to make: the guest waits, and goes on elsewhere."""
    image, other = tiny_tmpfs / "disk.img", tmp_path / "disk.img"
    for path in (image, other):
        with path.open("wb") as file:
            file.truncate(4 << 20)
    (tiny_tmpfs / "filler").write_bytes(bytes(768 << 10))
    guest = vhost_user_guest(serve(server, File(image)))
    tickets = [guest.submit(Request.write(n * 1024, X * 64)) for n in range(3)]
    assert until(lambda: held(server) > 0)
    replace(server, File(other))
    assert [guest.wait(ticket).status for ticket in tickets] == [Status.OK] * 3
    assert guest.read(2048, 4096) == X
