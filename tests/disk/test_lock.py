import fcntl
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from vhostblk.disk import lock
from vhostblk.disk.file import File, Locking, LockWhen
from vhostblk.disk.lock import Permission
from vhostblk.errors import VhostBlkError


def needs(*tools: str) -> None:
    """Skip, by name, without QEMU's tools."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing (packages qemu-utils, qemu-system-x86)")


@contextmanager
def locked(path: Path, *, write: bool) -> Iterator[int]:
    """Hold an image as a device does."""
    fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
    try:
        lock.acquire(fd, str(path), write=write)
        yield fd
    finally:
        os.close(fd)


def refused(path: Path, *, write: bool) -> str:
    """Try to lock an image and return why that was refused."""
    with pytest.raises(VhostBlkError) as caught, locked(path, write=write):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def held_bytes(path: Path) -> set[int]:
    """Return the bytes of a file that are locked, as the kernel lists them."""
    inode = path.stat().st_ino
    held: set[int] = set()
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "OFDLCK" and words[-3].split(":")[-1] == str(inode):
            held.update(range(int(words[-2]), int(words[-1]) + 1))
    return held


@contextmanager
def qemu_io(path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Hold an image open in qemu-io."""
    needs("qemu-io")
    command = ["qemu-io", "-f", "raw", *options, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("read 0 512\n")  # answered: so it is open and locked
        process.stdin.flush()
        assert "read 512/512 bytes" in process.stdout.readline()
        yield process
        process.stdin.close()


@contextmanager
def storage_daemon(path: Path, *, write: bool) -> Iterator[None]:
    """Export an image from qemu-storage-daemon, as its vhost-user-blk does."""
    needs("qemu-storage-daemon")
    mode = "off" if write else "on"
    pidfile = path.parent / "qsd.pid"
    subprocess.run(
        [
            *("qemu-storage-daemon", "--daemonize", "--pidfile", str(pidfile)),
            *("--blockdev", f"driver=file,node-name=disk,filename={path},read-only={mode}"),
            *("--nbd-server", f"addr.type=unix,addr.path={path.parent}/nbd"),
            "--export",
            f"type=nbd,id=export,node-name=disk,writable={'on' if write else 'off'}",
        ],
        check=True,
    )
    pid = int(pidfile.read_text())
    watch = os.pidfd_open(pid)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, 15)
        # Readable when it has ended: the next test must not meet its lock.
        select.select([watch], [], [], 10)
        os.close(watch)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of QEMU's tools and keep what it says."""
    needs(str(command[0]))
    return subprocess.run(
        [str(word) for word in command], check=False, capture_output=True, text=True
    )


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


def test_qemu_io_that_writes_keeps_us_out(image: Path) -> None:
    """QEMU first: we refuse to write or read beside it, and name the process."""
    with qemu_io(image) as process:
        for write in (False, True):
            text = refused(image, write=write)
            assert f"qemu-io (pid {process.pid}) writes to it" in text


def test_qemu_io_that_reads_is_welcome_beside_a_reader(image: Path) -> None:
    """Readers of both kinds share an image."""
    with qemu_io(image, "-r"), locked(image, write=False):
        pass
    with locked(image, write=False), qemu_io(image, "-r"):
        pass


def test_qemu_io_that_reads_lets_us_write(image: Path) -> None:
    """A reader that lets others write keeps nobody out."""
    with qemu_io(image, "-r"), locked(image, write=True):
        pass


def test_qemu_refuses_an_image_that_we_write(image: Path) -> None:
    """We first: qemu-img and qemu-io refuse the image by their own lock."""
    with locked(image, write=True):
        for command in (
            ("qemu-img", "resize", "-f", "raw", image, "8M"),
            ("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, image),
            ("qemu-io", "-f", "raw", "-c", "write 0 512", image),
        ):
            result = run(*command)
            assert result.returncode != 0
            assert "lock" in result.stderr
    assert run("qemu-io", "-f", "raw", "-c", "write 0 512", image).returncode == 0


def test_qemu_may_read_and_not_write_what_we_read(image: Path) -> None:
    """Beside our reader QEMU reads; its writer is refused."""
    with locked(image, write=False):
        assert run("qemu-img", "info", image).returncode == 0
        assert run("qemu-io", "-r", "-f", "raw", "-c", "read 0 512", image).returncode == 0
        result = run("qemu-io", "-f", "raw", "-c", "write 0 512", image)
        assert result.returncode != 0
        assert 'Failed to get "write" lock' in result.stderr


def test_the_storage_daemon_and_we_refuse_each_other(image: Path) -> None:
    """qemu-storage-daemon that exports an image for writing keeps us out, and we it."""
    with storage_daemon(image, write=True):
        assert "qemu-storage-d" in refused(image, write=True)
        assert "writes to it" in refused(image, write=False)
    with (
        locked(image, write=True),
        pytest.raises(subprocess.CalledProcessError),
        storage_daemon(image, write=True),
    ):
        pass


@pytest.mark.parametrize("write", [False, True])
def test_a_virtual_machine_is_refused_beside_us(image: Path, *, write: bool) -> None:
    """QEMU's own virtio-blk, which is what we stand in for, does not start on our image."""
    mode = "off" if write else "on"
    with locked(image, write=True):
        result = run(
            *("qemu-system-x86_64", "-S", "-display", "none", "-nodefaults"),
            *("-drive", f"if=none,id=d,file={image},format=raw,read-only={mode}"),
            *("-device", "virtio-blk-pci,drive=d"),
        )
    assert result.returncode != 0
    assert f'Failed to get {"" if write else "shared "}"write" lock' in result.stderr
    assert "Is another process using the image" in result.stderr


def test_the_storage_daemon_and_we_read_together(image: Path) -> None:
    """Two read-only exports of one image go together, whoever came first."""
    with storage_daemon(image, write=False), locked(image, write=False):
        pass
    with locked(image, write=False), storage_daemon(image, write=False):
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
