"""Disks that say that several threads may call them."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from server_kit.serving import Serving, until

from vhostblk.disk.api import Disk, DiskInfo
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, Request

Connect = Callable[..., Guest]
MIB = 1 << 20
X = b"x" * 4096


class Meeting(Disk):
    """A read waits until as many are under way as may be."""

    parallel = 4

    def __init__(self) -> None:
        self.barrier = threading.Barrier(4, timeout=10)
        self.threads: set[str] = set()
        self.opened = ""

    def open(self) -> None:
        self.opened = threading.current_thread().name

    def info(self) -> DiskInfo:
        return DiskInfo(size=MIB)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self.threads.add(threading.current_thread().name)
        self.barrier.wait()
        views[0][:] = bytes([offset // 4096]) * len(views[0])


class InFile(Disk):
    """A file; its calls let other threads run."""

    parallel = 8

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.fd, MIB)
        self.wait = threading.Event()
        self.wait.set()
        self.begun = 0
        self.over = 0

    def info(self) -> DiskInfo:
        return DiskInfo(size=MIB)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self.begun += 1
        self.wait.wait()
        os.preadv(self.fd, list(views), offset)
        self.over += 1

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        os.pwritev(self.fd, list(views), offset)

    def flush(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def test_plain_methods_run_together(server: Serving, vhost_user_guest: Connect) -> None:
    """Four reads that wait for each other end; what is no request is on the disk's own thread."""
    disk = Meeting()
    guest = vhost_user_guest(server.add(disk, num_queues=2), queues=2)
    tickets = [guest.submit(Request.read(8 * n, 4096), queue=n % 2) for n in range(8)]
    for n, ticket in enumerate(tickets):
        assert guest.wait(ticket).data == bytes([n]) * 4096
    assert len(disk.threads) == 4
    assert disk.opened not in disk.threads


def test_bytes_and_errors_come_from_threads(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Writes, a flush and reads of many requests; one that is not on the file's end fails alone."""
    guest = vhost_user_guest(server.add(InFile(tmp_path / "f")))
    tickets = [guest.submit(Request.write(8 * n, bytes([n]) * 4096)) for n in range(32)]
    assert [guest.wait(ticket).status for ticket in tickets] == [0] * 32
    guest.flush()
    for n in range(32):
        assert guest.read(8 * n, 4096) == bytes([n]) * 4096


def test_a_thread_that_is_cancelled_keeps_its_memory(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """A read given up at a stop is dead until its thread returns; the next guest is served."""
    disk = InFile(tmp_path / "f")
    path = server.add(disk, drain_seconds=0.05)
    guest = vhost_user_guest(path)
    guest.write(0, X)
    disk.wait.clear()
    guest.submit(Request.read(0, 4096))
    assert until(lambda: disk.begun == 1)
    guest.stop()
    guest.close()
    service = next(iter(server.services.values()))
    assert server.ask(service.device.backing.dead) == 1
    disk.wait.set()
    assert until(lambda: server.ask(service.device.backing.dead) == 0)
    assert vhost_user_guest(path).read(0, 4096) == X


def test_a_disk_whose_thread_never_returns_holds_nobody_up(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """The server ends all the same, within its patience."""
    disk = InFile(tmp_path / "f")
    guest = vhost_user_guest(server.add(disk, drain_seconds=0.05))
    disk.wait.clear()
    guest.submit(Request.read(0, 4096))
    assert until(lambda: disk.begun == 1)
    guest.close()
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < 20
    disk.wait.set()


@pytest.mark.parametrize("wrong", [0, 65, "many"])
def test_a_number_that_is_none_is_refused(server: Serving, wrong: object) -> None:
    """In one line that says what to write."""

    class Wrong(Meeting):
        parallel = wrong  # type: ignore[assignment]

    with pytest.raises(VhostBlkError, match="write how many, 1 to 64"):
        server.add(Wrong())
