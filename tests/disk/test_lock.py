"""The lock of an image: who goes with whom, and who is waited for."""

import fcntl
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from locks import held_bytes, locked, refused

from vhostblk.disk import lock
from vhostblk.disk.file import File, Locking, LockWhen
from vhostblk.disk.lock import Permission
from vhostblk.errors import VhostBlkError


def test_a_writer_locks_what_qemus_virtio_blk_locks(image: Path) -> None:
    """Bytes 100 and 101 (reads, writes) and 201 (nobody else may write)."""
    with locked(image, write=True):
        assert held_bytes(image) == {100, 101, 201}
    assert held_bytes(image) == set()


def test_a_reader_locks_what_qemus_virtio_blk_locks(image: Path) -> None:
    """Bytes 100 (reads) and 201 (nobody may write)."""
    with locked(image, write=False):
        assert held_bytes(image) == {100, 201}


def test_the_permissions_are_qemus_bits() -> None:
    """BLK_PERM_CONSISTENT_READ is 1, WRITE 2, WRITE_UNCHANGED 4, RESIZE 8 (block-common.h)."""
    assert {p.name: 1 << p for p in Permission} == {
        "CONSISTENT_READ": 1,
        "WRITE": 2,
        "WRITE_UNCHANGED": 4,
        "RESIZE": 8,
    }


def test_two_writers_do_not_go_together(image: Path) -> None:
    """The second writer is told who writes, by process, and keeps nothing locked."""
    with locked(image, write=True):
        text = refused(image, write=True)
        assert text.startswith(f"{image}: in use: this process itself (pid {os.getpid()}) writes")
        assert "stop that first" in text
        assert held_bytes(image) == {100, 101, 201}


def test_a_reader_does_not_go_with_a_writer(image: Path) -> None:
    """A reader refuses a writer, in either order, and says which of them is there."""
    with locked(image, write=True):
        assert "writes to it" in refused(image, write=False)
    with locked(image, write=False):
        text = refused(image, write=True)
    assert "lets nobody else write: stop that first, or serve it with read-only=on" in text


def test_many_readers_go_together(image: Path) -> None:
    """Any number of readers share an image, and the last leaves it free."""
    with locked(image, write=False), locked(image, write=False), locked(image, write=False):
        assert held_bytes(image) == {100, 201}
    with locked(image, write=True):
        pass


def test_a_lock_can_be_given_back(image: Path) -> None:
    """`release` frees the image while the file stays open."""
    with locked(image, write=True) as fd:
        lock.release(fd)
        with locked(image, write=True):
            pass


def test_a_lock_on_the_whole_file_is_named(image: Path) -> None:
    """Somebody's exclusive lock over all bytes is a conflict too, not a crash."""
    fd = os.open(image, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock.FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
        text = refused(image, write=True)
    finally:
        os.close(fd)
    assert "has it locked as a whole" in text
    assert f"pid {os.getpid()}" in text


def test_a_file_system_without_locks_is_told_apart(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOLCK is no conflict: a caller may decide to go on without."""

    def no_locks(fd: int, command: int, argument: bytes) -> bytes:
        del fd, command, argument
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with (
        pytest.raises(lock.LockUnavailableError, match="add locking=off if nothing else uses"),
        locked(image, write=True),
    ):
        pass


def test_a_lock_without_a_living_owner_is_waited_for(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process that was killed it lives until its last I/O has returned: it may go yet."""
    other = os.open(image, os.O_RDWR)
    lock.acquire(other, str(image), write=True)
    looks: list[float] = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            os.close(other)

    monkeypatch.setattr(lock, "_holder", lambda *_: None)
    fd = os.open(image, os.O_RDWR)
    lock.acquire(fd, str(image), write=True, seconds=2.0, pause=look)
    assert len(looks) == 3
    assert held_bytes(image) == {100, 101, 201}
    os.close(fd)


def test_a_lock_nobody_is_seen_to_have_is_not_waited_for_for_ever(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another user's process: after a bounded time the error comes."""
    monkeypatch.setattr(lock, "_holder", lambda *_: None)
    with locked(image, write=True):
        fd = os.open(image, os.O_RDWR)
        with pytest.raises(VhostBlkError, match="in use: another process writes to it"):
            lock.acquire(fd, str(image), write=True, seconds=0.01)
        os.close(fd)


def test_who_is_waited_for_is_said_once(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a second of patience an operator learns why a server does not start."""
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(lock, "_holder", lambda *_: None)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with locked(image, write=True):
        fd = os.open(image, os.O_RDWR)
        with pytest.raises(VhostBlkError, match="in use: another process writes to it"):
            lock.acquire(fd, str(image), write=True, seconds=lock.ORPHAN_SECONDS, pause=wait)
        os.close(fd)
    assert 30 <= now[0] < 31
    (record,) = caplog.records
    assert "no living process is seen to have it" in record.message
    assert "up to 30 s" in record.message


def test_a_short_wait_is_not_told_of(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart that waits for less than a second has nothing to say."""
    monkeypatch.setattr(lock, "_holder", lambda *_: None)
    other = os.open(image, os.O_RDWR)
    lock.acquire(other, str(image), write=True)
    fd = os.open(image, os.O_RDWR)
    lock.acquire(fd, str(image), write=True, seconds=30, pause=lambda _: os.close(other))
    os.close(fd)
    assert not caplog.records


def test_a_wait_can_be_called_off(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told to stop while its `open` waits is refused at once, and leaves no lock."""
    monkeypatch.setattr(lock, "_holder", lambda *_: None)
    file = File(image)
    with locked(image, write=True):
        thread = threading.Timer(0.03, file.call_off)
        thread.start()
        begun = time.monotonic()
        with pytest.raises(VhostBlkError, match="in use"):
            file.open()
        assert time.monotonic() - begun < lock.ORPHAN_SECONDS / 3
        thread.join()
    assert held_bytes(image) == set()


def test_a_living_owner_is_named_at_once(image: Path) -> None:
    """A process that goes on using the image is not waited for."""
    with locked(image, write=True):
        fd = os.open(image, os.O_RDWR)
        with pytest.raises(VhostBlkError, match="this process itself"):
            lock.acquire(
                fd, str(image), write=True, seconds=30, pause=lambda _: pytest.fail("it waits")
            )
        os.close(fd)


def test_a_killed_process_is_dying() -> None:
    """One that has gone, and one that only waits to be reaped, have no claim to a lock."""
    with subprocess.Popen(["sleep", "60"]) as child:
        assert not lock._is_dying(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert lock._is_dying(child.pid)
    assert lock._is_dying(child.pid)


def test_a_file_that_is_locked_while_running_is_open_to_others_before(image: Path) -> None:
    """Both ends of a migration have it open; of the two that want it one is refused, and waits."""
    source, target = (File(image, lock=LockWhen.WHILE_RUNNING) for _ in range(2))
    source.open()
    target.open()
    assert held_bytes(image) == set()
    source.lock()
    assert held_bytes(image) == {100, 101, 201}
    with pytest.raises(VhostBlkError, match="writes to it"):
        target.lock()
    source.unlock()
    target.lock()
    assert held_bytes(image) == {100, 101, 201}
    target.unlock()
    target.unlock()
    assert held_bytes(image) == set()
    source.close()
    target.close()


def test_a_file_that_nobody_locks_can_be_shared_too(image: Path) -> None:
    """With locking=off the hooks are there, for the flush between them, and lock nothing."""
    file = File(image, lock=LockWhen.WHILE_RUNNING, locking=Locking.OFF)
    file.open()
    assert file.lock_while_running
    file.lock()
    assert held_bytes(image) == set()
    file.unlock()
    file.close()
