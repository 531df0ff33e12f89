"""A server that is replaced while it serves: its processes, one after the other."""

import os
import random
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import running
from running import TIMEOUT_S

from vhostblk.guest import Guest
from vhostblk.guest.blk import Request

MIB = 1 << 20
BLOCK = 4096
BLOCKS = 8 * MIB // BLOCK
"""Of an image."""
TAKEN_OVER = re.compile(r"process (\d+) has taken over")
READY = re.compile("ready for a front-end")
PAUSED = re.compile(r"guest paused for ([0-9.]+) ms")


class Upgraded:
    """
    What was started once, whichever process serves now.

    Args:
        process: The first; its stderr is a pipe, which those after it inherit.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self.log = ""
        self.pauses: list[float] = []
        """Milliseconds."""
        self._process = process
        assert process.stderr is not None
        self._stderr = process.stderr.fileno()

    def ask(self) -> None:
        """Ask for an upgrade, as an operator does."""
        os.kill(self.pid, signal.SIGUSR2)

    def upgrade(self) -> None:
        """Have a new process take over; returns when the old one has ended."""
        self.ask()
        start = len(self.log)
        paused = self.wait_for(PAUSED, start)
        taken = self.wait_for(TAKEN_OVER, start)
        self.pauses.append(float(paused[1]))
        old, self.pid = self.pid, int(taken[1])
        if old == self._process.pid:
            assert self._process.wait(TIMEOUT_S) == 0
        else:
            deadline = time.monotonic() + TIMEOUT_S
            while Path(f"/proc/{old}").exists():
                assert time.monotonic() < deadline, f"process {old} does not end"
                time.sleep(0.002)

    def wait_for(self, what: re.Pattern[str], start: int = 0) -> re.Match[str]:
        """Read the log until it says *what* behind *start*."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := what.search(self.log, start)):
            done = "upgrade: not done" not in self.log[start:]
            assert done or what not in {PAUSED, TAKEN_OVER}, self.log
            assert self._read(deadline), f"the log ends without {what.pattern}:\n{self.log}"
        return found

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._stderr], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"nothing more comes:\n{self.log}"
        data = os.read(self._stderr, 65536)
        self.log += data.decode()
        return bool(data)

    def end(self) -> str:
        """End the server; return all of its log, of all its processes."""
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + TIMEOUT_S
        while self._read(deadline):
            pass
        assert "Traceback" not in self.log, self.log
        return self.log

    def kill(self) -> None:
        """Leave none of it."""
        for pid in {self.pid, self._process.pid}:
            if pid != self._process.pid or self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()
        os.set_blocking(self._stderr, False)
        if self._process.stderr is not None:
            self._process.stderr.close()

    @property
    def open_fds(self) -> int:
        """How many descriptors the process that serves now has open."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


@contextmanager
def served(*words: str | Path, cwd: Path) -> Iterator[Upgraded]:
    """Run ``vhostblk serve`` with *words*, ready to be upgraded."""
    server = Upgraded(running.start("-m", "vhostblk", "serve", *words, cwd=cwd))
    try:
        server.wait_for(READY)
        yield server
    except BaseException as error:
        error.add_note(f"the server's log:\n{server.log[-6000:]}")
        raise
    finally:
        server.kill()


def needs_core() -> None:
    """Skip without the compiled core."""
    pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)


@contextmanager
def image_served(
    image: Path, *words: str, engine: str = "reference"
) -> Iterator[tuple[Upgraded, Path]]:
    """Serve an image so, beside itself; with the socket."""
    if engine == "native":
        needs_core()
    path = image.with_name("s")
    options: list[str | Path] = ["--engine", engine, *words, "--socket-path", path, image]
    with served(*options, cwd=image.parent) as server:
        yield server, path


class Load:
    """
    Writes of a guest with their readings back, queue after queue.

    Args:
        guest: Who does it.
        queues: On so many.
    """

    def __init__(self, guest: Guest, queues: int, seed: int = 1) -> None:
        self._guest = guest
        self._queues = queues
        self._random = random.Random(seed)
        self.expected: dict[int, bytes] = {}
        self.rounds = 0

    def round(self) -> None:
        """Write on every queue at once, several blocks each, and read back on another."""
        blocks = self._random.sample(range(BLOCKS), 4 * self._queues)
        tickets = []
        for at, block in enumerate(blocks):
            data = self._random.randbytes(BLOCK)
            self.expected[block] = data
            request = Request.write(8 * block, data)
            tickets.append(self._guest.submit(request, queue=at % self._queues))
        for ticket in tickets:
            assert self._guest.wait(ticket).status == 0
        for at, block in enumerate(blocks):
            queue = (at + 1) % self._queues
            assert self._guest.read(8 * block, BLOCK, queue=queue) == self.expected[block]
        self.rounds += 1

    def during(self, server: Upgraded, times: int) -> None:
        """Go on while a server is upgraded, so many times; then check all there is."""
        failures: list[BaseException] = []

        def upgrade() -> None:
            try:
                for _ in range(times):
                    server.upgrade()
            except BaseException as error:  # noqa: BLE001 - raised again below
                failures.append(error)

        upgrading = threading.Thread(target=upgrade)
        upgrading.start()
        while upgrading.is_alive():
            self.round()
        upgrading.join()
        if failures:
            raise failures[0]
        for block, data in self.expected.items():
            assert self._guest.read(8 * block, BLOCK) == data


def check_image(image: Path, load: Load) -> None:
    data = image.read_bytes()
    for block, expected in load.expected.items():
        assert data[block * BLOCK :][:BLOCK] == expected
