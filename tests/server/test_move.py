"""A queue that goes from one worker to another: who may ask for it, and that no driver notices."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from server_kit.disks import Ram, Slow
from server_kit.serving import Serving, serving, until

from vhostblk.disk.api import Disk
from vhostblk.disk.file import File
from vhostblk.disk.memory import Memory
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, Request
from vhostblk.server import change
from vhostblk.server.status import status
from vhostblk.spec.virtio_blk import Status

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

Connect = Callable[..., Guest]
WORKERS = 3
MIB = 1 << 20


@pytest.fixture
def native() -> Iterator[Serving]:
    """Run a server whose data plane has several workers."""
    with serving("native", workers=WORKERS) as server:
        yield server


def move(server: Serving, queue: int = 0, worker: int | None = None) -> int:
    return server.run(change.move(server.devices[0], queue, worker))


def workers(server: Serving) -> list[int | None]:
    return [one["worker"] for one in server.ask(lambda: status(server.devices[0]))["queues"]]


def _file(directory: Path) -> File:
    path = directory / "image"
    path.write_bytes(bytes(MIB))
    return File(path)


DISKS: dict[str, Callable[[Path], Disk]] = {
    "memory": lambda _: Memory(MIB),
    "file": _file,
    "python": lambda _: Ram(MIB),
}


@pytest.mark.parametrize("kind", [{}, {"packed": True}, {"in_order": True}], ids=str)
@pytest.mark.parametrize("disk", DISKS)
def test_driver_notices_nothing(
    disk: str, kind: dict[str, bool], native: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Under load, bytes compared; what was counted is counted on."""
    guest = vhost_user_guest(native.add(DISKS[disk](tmp_path)), **kind)
    over = threading.Event()
    rounds = 0
    failures: list[BaseException] = []

    def load() -> None:
        nonlocal rounds
        try:
            while not over.is_set():
                rounds += 1
                data = bytes([rounds % 255 + 1]) * 4096
                tickets = [guest.submit(Request.write(8 * i, data)) for i in range(8)]
                assert [guest.wait(one).status for one in tickets] == [Status.OK] * 8
                assert guest.read(0, 8 * 4096) == 8 * data
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    def went_on(before: int) -> bool:
        return rounds > before or bool(failures)

    driver = threading.Thread(target=load)
    driver.start()
    try:
        for i in range(12):
            assert until(partial(went_on, rounds))
            assert move(native, worker=i % WORKERS) == i % WORKERS
    finally:
        over.set()
        driver.join()
    assert failures == []
    counters = native.ask(lambda: status(native.devices[0]))["queues"][0]["counters"]
    assert counters["writes"] == 8 * counters["reads"] == 8 * rounds


def test_queues_go_where_less_is_to_do(native: Serving, vhost_user_guest: Connect) -> None:
    """Without a number: as long as that makes the difference smaller."""
    vhost_user_guest(native.add(Memory(MIB), num_queues=4), queues=4)
    assert sorted(workers(native), key=str) == [0, 0, 1, 2]
    for queue in range(4):
        move(native, queue, worker=2)
    assert workers(native) == [2, 2, 2, 2]
    assert [move(native, queue) for queue in range(4)] == [0, 1, 2, 2]
    assert workers(native) == [0, 1, 2, 2]


def test_queue_that_has_stopped_moves(native: Serving, vhost_user_guest: Connect) -> None:
    """It starts again where it is then."""
    guest = vhost_user_guest(native.add(Memory(MIB)))
    guest.write(0, b"x" * 512)
    guest.stop()
    assert move(native, worker=1) == 1
    guest.start()
    assert guest.read(0, 512) == b"x" * 512
    assert workers(native) == [1]


@pytest.mark.parametrize(
    ("queue", "worker", "error"),
    [
        (0, WORKERS, f"there is no worker {WORKERS}: there are 0 to {WORKERS - 1}"),
        (0, -1, "there is no worker -1"),
        (1, 0, "the front-end has set up no queue 1"),
        (-1, 0, "the front-end has set up no queue -1"),
    ],
)
def test_what_there_is_not_is_refused(
    queue: int, worker: int, error: str, native: Serving, vhost_user_guest: Connect
) -> None:
    """The queue is served as it was."""
    guest = vhost_user_guest(native.add(Memory(MIB)))
    with pytest.raises(VhostBlkError, match=error):
        move(native, queue, worker)
    guest.write(0, b"x" * 512)
    assert workers(native) == [0]


def test_nobody_there(native: Serving) -> None:
    """Queues that do not exist cannot be moved."""
    native.add(Memory(MIB))
    with pytest.raises(VhostBlkError, match="no front-end is connected"):
        move(native)


def test_requests_that_take_long_are_not_given_up(
    native: Serving, vhost_user_guest: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The move is refused, and the queue goes on."""
    disk = Slow()
    guest = vhost_user_guest(native.add(disk))
    disk.set(free=False)
    first = guest.submit(Request.write(0, b"x" * 512))
    assert until(lambda: disk.waiting == 1)
    monkeypatch.setattr(change, "STILL_SECONDS", 0.05)
    with pytest.raises(VhostBlkError, match=r"requests take longer than 0\.05 s now"):
        move(native, worker=1)
    second = guest.submit(Request.write(8, b"y" * 512))
    assert until(lambda: disk.waiting == 2)
    disk.set(free=True)
    assert [guest.wait(one).status for one in (first, second)] == [Status.OK] * 2
    assert workers(native) == [0]
