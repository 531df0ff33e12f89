"""What a recording is replayed on: a disk that is served for it, or somebody's socket."""

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vhostblk.cli import progress
from vhostblk.cli.trace_replay import Replay, Replayed
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, GuestMemory, Region
from vhostblk.guest.errors import GuestError
from vhostblk.trace.reader import Request
from vhostblk.trace.records import NO_QUEUE

START_SECONDS = 30.0
_MEMORY = 256 << 20
_QUEUE_SIZE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    What is to be replayed, and how; see `Replay`.

    Args:
        requests: In the order in which they were submitted.
        size: Bytes of the disk they were for.
        speed: See `Replay`.
        packed: Use packed rings.
        compare: See `Replay`.
        timeout: Seconds of one request.
    """

    requests: Sequence[Request]
    size: int
    speed: float
    packed: bool
    compare: bool
    timeout: float

    def run(self, path: Path) -> Replayed:
        """
        Replay it on the back-end that listens at *path*.

        Raises:
            VhostBlkError: It is not there, does not do what is asked, or is too small.
        """
        used = {one.submitted.queue for one in self.requests} - {NO_QUEUE}
        try:
            with self._connect(path, queues=max(used, default=0) + 1) as guest:
                return self._replay(guest)
        except GuestError as error:
            raise VhostBlkError(f"{path}: {error}") from error

    def _connect(self, path: Path, *, queues: int) -> Guest:
        """Connect with as many queues as there were, or as many as there are."""
        memory = GuestMemory([Region(0, _MEMORY)])
        with Guest.connect(path, start=False, timeout=self.timeout) as probe:
            queues = min(queues, probe.frontend.get_queue_num())
        return Guest.connect(
            path,
            queues=queues,
            queue_size=_QUEUE_SIZE,
            packed=self.packed,
            memory=memory,
            timeout=self.timeout,
        )

    def _replay(self, guest: Guest) -> Replayed:
        capacity = guest.config().capacity * 512
        needed = max(one.submitted.offset + one.submitted.length for one in self.requests)
        if needed > capacity:
            raise VhostBlkError(
                f"the disk has {capacity} bytes, and the recording goes to {needed}: "
                "serve one that is as large"
            )
        replay = Replay(guest, self.requests, speed=self.speed, compare=self.compare)
        of = len(self.requests)
        with progress.shown(lambda: f"{replay.done.requests} of {of} requests"):
            return replay.run()


@contextlib.contextmanager
def served(disk: str) -> Iterator[Path]:
    """
    Serve a disk in a process of its own; what that says goes to stderr.

    Raises:
        VhostBlkError: It cannot be served.
    """
    with tempfile.TemporaryDirectory(prefix="vhostblk-replay-") as directory:
        path = Path(directory) / "s"
        command = [sys.executable, "-m", "vhostblk", "serve", "--quiet", "--num-queues", "64"]
        process = subprocess.Popen([*command, "--socket-path", path, disk])
        try:
            _wait_for(path, process)
            yield path
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while not path.exists():
        if process.poll() is not None:
            raise VhostBlkError("the disk cannot be served: see above")
        if time.monotonic() > end:
            raise VhostBlkError(f"the disk is not served within {START_SECONDS:g} s")
        time.sleep(0.01)
