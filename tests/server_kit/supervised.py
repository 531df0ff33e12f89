"""A server in a process of its own that is killed at random instants, and started again."""

import random
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import running


class Supervisor:
    """
    Keeps a server running that somebody keeps killing.

    Args:
        socket: Where it listens.
        words: Of ``vhostblk serve``.
        kills: How often it is killed, soon after it listens.
        seed: Decides when.
    """

    def __init__(self, socket: Path, words: Sequence[str | Path], kills: int, seed: int) -> None:
        self._socket = socket
        self._words = words
        self._kills = kills
        self._random = random.Random(seed)
        self._load = threading.Event()
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self.killed = 0
        """How often it was."""

    @property
    def done(self) -> bool:
        """Whether it is not killed any more."""
        return self.killed == self._kills

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise why the server could not be started, rather than what came of that."""
        try:
            yield
        except Exception:
            if self._failure is not None:
                raise self._failure from None
            raise

    def start(self) -> None:
        """Return when it listens; from ``loaded`` on it is killed."""
        self._process = self._start()
        self._thread.start()

    def loaded(self) -> None:
        """Begin to kill it."""
        self._load.set()

    def end(self) -> None:
        """End it for good."""
        self._over.set()
        self._load.set()
        self._thread.join()
        self._kill()

    def _run(self) -> None:
        try:
            self._kill_again_and_again()
        except BaseException as error:  # noqa: BLE001 - raised again by who asks
            self._failure = error

    def _kill_again_and_again(self) -> None:
        self._load.wait()
        while self.killed < self._kills and not self._over.is_set():
            # Within the start that follows the connection, soon after it, or in the middle of I/O.
            most = self._random.choice([0.005, 0.02, 0.1])
            if self._over.wait(self._random.uniform(0, most)):
                return
            self._kill()
            self._process = self._start()
            self.killed += 1

    def _start(self) -> subprocess.Popen[str]:
        words = ("-m", "vhostblk", "serve", "-q", "--socket-path", self._socket, *self._words)
        process = running.start(*words, cwd=self._socket.parent)
        running.wait_for_socket(self._socket, process)
        return process

    def _kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def supervised(socket: Path, *words: str | Path, kills: int, seed: int) -> Iterator[Supervisor]:
    """Run a supervised server around something."""
    supervisor = Supervisor(socket, words, kills, seed)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.end()
