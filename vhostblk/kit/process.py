"""``vhostblk serve`` in a process of its own, which can be killed."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from vhostblk.errors import VhostBlkError

PATIENCE = 30.0
"""Seconds for its start, and for its end."""
_LOOK = 0.005


class ServerProcess:
    """
    A server that can be ended, killed and started again; a context manager.

    Its log goes to a file beside the socket, and into the error if it does not start.

    Args:
        *arguments: Of ``vhostblk serve``, but for the socket: the disk at least.
        directory: For the socket and the log; it must have a short name.  ``None``: one that goes
            at the end.
        cwd: Where it runs, for relative names; ``None``: here.

    Raises:
        VhostBlkError: It does not start.
    """

    def __init__(
        self,
        *arguments: str | os.PathLike[str],
        directory: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._own = (
            None if directory is not None else tempfile.TemporaryDirectory(prefix="vhostblk-")
        )
        where = Path(self._own.name) if self._own else directory or Path()
        self.socket = where / "vhost-user.sock"
        """Where it listens."""
        self._log = where / "vhost-user.log"
        words = ("serve", "--socket-path", self.socket, *arguments)
        self._words = [sys.executable, "-m", "vhostblk", *(os.fspath(word) for word in words)]
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """
        Return its process.

        Raises:
            VhostBlkError: It does not run.
        """
        if self._process is None:
            raise VhostBlkError("the server does not run: call start()")
        return self._process.pid

    @property
    def log(self) -> str:
        """Return what it has logged, since the beginning."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """
        Start it, on the same socket; return when it listens.

        Raises:
            VhostBlkError: It does not; with its log.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - it is us, and what the test says
                self._words, cwd=self._cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE
        while not is_listening(self.socket):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise VhostBlkError(f"vhostblk serve does not start: {self.log.strip()}")
            time.sleep(_LOOK)

    def stop(self) -> int:
        """End it by SIGTERM, as an operator does; return its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it: nothing is drained or flushed."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End it if it runs, and remove its directory."""
        with contextlib.suppress(VhostBlkError):
            self.stop()
        if self._own is not None:
            self._own.cleanup()

    def _end(self, sig: signal.Signals) -> int:
        if self._process is None:
            raise VhostBlkError("the server does not run: call start()")
        self._process.send_signal(sig)
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        return status


def is_listening(path: Path) -> bool:
    """
    Tell whether somebody listens, without connecting: that would be taken for the front-end.

    Source: Linux, net/unix/af_unix.c, unix_seq_show: flags 10000 are those of a listening socket.
    """
    sockets = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines())
    return any(row[3] == "00010000" and row[-1] == str(path) for row in sockets)
