"""
Who serves the guest's disk: this package, or a back-end that nobody here wrote.

Each is a context manager that yields the socket once it listens, and checks that the process
ends cleanly when told to.
"""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import is_listening

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Disk:
    """
    A disk to serve.

    Args:
        image: The file.
        queues: Virtqueues.
        serial: What the guest finds in sysfs, where the back-end can say it.
        read_only: Refuse writes.
    """

    image: Path
    queues: int = 1
    serial: str = ""
    read_only: bool = False


@contextmanager
def vhostblk(disk: Disk, directory: Path, *options: str) -> Iterator[Path]:
    """
    Serve by this package's command line.

    Args:
        disk: What to serve.
        directory: For the socket and the log; its path must be short.
        options: More of `vhostblk serve`.

    Yields:
        The socket, listening.
    """
    socket = directory / "s"
    command = [sys.executable, "-m", "vhostblk", "serve", "--socket-path", str(socket)]
    command += ["--num-queues", str(disk.queues), *options]
    command += ["--serial", disk.serial] if disk.serial else []
    command += ["--read-only"] if disk.read_only else []
    with _running([*command, str(disk.image)], socket, directory / "server.log"):
        yield socket


def reference(disk: Disk, directory: Path) -> AbstractContextManager[Path]:
    """Serve by the data plane in Python."""
    return vhostblk(disk, directory, "--engine", "reference")


@contextmanager
def qemu_storage_daemon(disk: Disk, directory: Path) -> Iterator[Path]:
    """Serve by QEMU's own back-end: what holds with it holds of the scenario, not of us."""
    program = shutil.which("qemu-storage-daemon")
    if program is None:
        pytest.skip("qemu-storage-daemon is not installed (Debian: qemu-utils)")
    socket = directory / "s"
    flag = "off" if disk.read_only else "on"
    export = f"type=vhost-user-blk,id=e,node-name=d,num-queues={disk.queues},writable={flag}"
    node = f"driver=file,node-name=d,filename={disk.image},discard=unmap"
    command = [
        *(program, "--blockdev", f"{node},read-only={'on' if disk.read_only else 'off'}"),
        *("--export", f"{export},addr.type=unix,addr.path={socket}"),
    ]
    with _running(command, socket, directory / "server.log"):
        yield socket


@contextmanager
def _running(command: Sequence[str], socket: Path, log: Path) -> Iterator[None]:
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output) as process,
    ):
        try:
            _wait_until_listening(process, socket, log)
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(_STOP_TIMEOUT_S) == 0, log.read_text()
        except BaseException as error:
            error.add_note(f"the server's log:\n{log.read_text()}")
            raise
        finally:
            process.kill()
    assert "Traceback" not in log.read_text(), log.read_text()


def _wait_until_listening(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    """
    Wait until *socket* listens.

    Its name is there before it does, and connecting would be taken for the one front-end.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not is_listening(socket):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"not listening: {log.read_text()}"
        time.sleep(0.01)
