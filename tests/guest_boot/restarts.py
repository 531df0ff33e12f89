"""A server that is killed and started again, as often as it takes."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from running import is_listening

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 20.0


class Server:
    """
    ``vhostblk serve`` in a process of its own; leaving the ``with`` ends it if it still runs.

    Args:
        socket: Where it listens; with *connect*, where the front-end does.
        disk: What it serves, in the command line's grammar.
        log: Where it writes to, all runs behind each other.
        options: More of ``vhostblk serve``.
    """

    def __init__(self, socket: Path, disk: str | Path, log: Path, options: Sequence[str]) -> None:
        self.socket = socket
        self._log = log
        words = (sys.executable, "-m", "vhostblk", "serve", "--socket-path", str(socket))
        self._command = [*words, *options, str(disk)]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"the server's log:\n{self.log[-6000:]}")
        self.kill()

    @property
    def log(self) -> str:
        """What all its runs have said."""
        return self._log.read_text()

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(self._command, stdout=output, stderr=output)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_listening(self.socket):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"not listening: {self.log}"
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill it where it stands (SIGKILL), and wait until the kernel is done with it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """End it as an operator does; nothing may have gone wrong inside, in any of its runs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOP_TIMEOUT_S) == 0, self.log
        assert "Traceback" not in self.log, self.log
