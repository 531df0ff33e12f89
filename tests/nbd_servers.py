"""Real NBD servers for tests, each on a Unix socket of its own."""

import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 10.0


class NbdServer:
    """
    A server that can be killed and started again on the same socket.

    Args:
        directory: For the socket, a short name.
        command: The program and its arguments; ``SOCKET`` and ``PIDFILE`` stand for those.
    """

    def __init__(self, directory: Path, *command: str) -> None:
        self.socket = directory / "nbd.sock"
        self._pidfile = directory / "nbd.pid"
        names = {"SOCKET": str(self.socket), "PIDFILE": str(self._pidfile)}
        self._command = [names.get(word, word) for word in command]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it takes connections."""
        self._process = subprocess.Popen(self._command)
        waited = threading.Event()
        for _ in range(int(PATIENCE * 200)):
            if self._pidfile.exists() and self._pidfile.read_text().strip():
                return
            assert self._process.poll() is None, f"{self._command[0]} has ended"
            waited.wait(0.005)
        raise AssertionError(f"{self._command[0]} is not up")

    def kill(self) -> None:
        """End it as a crash does: nothing of the socket is left."""
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it by a signal, if it runs."""
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait()
        self._process = None
        self.socket.unlink(missing_ok=True)
        self._pidfile.unlink(missing_ok=True)


@contextmanager
def nbdkit(directory: Path, *arguments: str) -> Iterator[NbdServer]:
    """Run nbdkit with a plugin and its parameters; filters come first."""
    with _served(directory, "nbdkit", "-f", "-U", "SOCKET", "-P", "PIDFILE", *arguments) as server:
        yield server


@contextmanager
def qemu_nbd(directory: Path, image: Path, *arguments: str) -> Iterator[NbdServer]:
    """Run qemu-nbd, persistently."""
    where = ("-k", "SOCKET", "--pid-file", "PIDFILE", "--persistent", "--shared=4")
    with _served(directory, "qemu-nbd", *where, *arguments, str(image)) as server:
        yield server


@contextmanager
def _served(directory: Path, *command: str) -> Iterator[NbdServer]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed (.ci/setup packages)")
    server = NbdServer(directory, *command)
    server.start()
    try:
        yield server
    finally:
        server.kill()
