"""Our lock and QEMU's: whoever comes second is refused, by its own means."""

import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from locks import locked, refused


def needs(*tools: str) -> None:
    """Skip, by name, without QEMU's tools."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing (packages qemu-utils, qemu-system-x86)")


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
