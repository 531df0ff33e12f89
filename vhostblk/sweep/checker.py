"""The user's checker: a command that is shown an image, and judges it by its exit status."""

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vhostblk.errors import VhostBlkError

PLACE = "{}"
OUTPUT = 64 << 10
"""Bytes of a checker's output that are kept: the last ones."""
_CANNOT_RUN = frozenset({126, 127})


@dataclass(frozen=True, slots=True)
class Said:
    """
    What a checker said.

    Args:
        good: It found nothing.
        how: How it ended.
        output: The end of what it wrote.
    """

    good: bool
    how: str
    output: str


class Checker:
    """
    Runs a command of the shell, for several states at once.

    Args:
        command: With `PLACE` where the image's path goes.
        good: Exit statuses that mean that nothing is wrong.
        seconds: How long it may take.

    Raises:
        VhostBlkError: It has no place for the path.
    """

    def __init__(self, command: str, *, good: Collection[int] = (0,), seconds: float = 60) -> None:
        if PLACE not in command:
            raise VhostBlkError(
                f"the check {command!r} has no {PLACE}: write it where the image's path goes, like "
                f"'e2fsck -fn {PLACE}'"
            )
        self._command = command
        self._good = frozenset(good)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._stopped = False

    def run(self, image: Path, environ: Mapping[str, str]) -> Said | None:
        """
        Show it an image.

        Args:
            image: The path.
            environ: Put into its environment.

        Returns:
            What it said; None: it was stopped.

        Raises:
            VhostBlkError: It cannot be run at all.
        """
        command = self._command.replace(PLACE, shlex.quote(str(image)))
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(  # noqa: S602 - the user's own command
                command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environ},
                start_new_session=True,
            )
            self._running.add(process.pid)
        late = threading.Timer(self._seconds, _kill, [process])
        late.start()
        with process:
            output = _tail(process)
            status = process.wait()
        was_late = not late.is_alive()
        late.cancel()
        with self._lock:
            self._running.discard(process.pid)
            if self._stopped:
                return None
        return self._said(status, output, was_late=was_late)

    def stop(self) -> None:
        """End all that run; no other begins."""
        with self._lock:
            self._stopped = True
            for pid in self._running:
                _kill_group(pid)

    def _said(self, status: int, output: str, *, was_late: bool) -> Said:
        if status in _CANNOT_RUN and status not in self._good:
            raise VhostBlkError(f"the check cannot be run: {output.strip() or self._command}")
        if was_late and status < 0:
            return Said(good=False, how=f"took more than {self._seconds:g} s", output=output)
        how = f"ended with status {status}" if status >= 0 else f"was killed by signal {-status}"
        return Said(good=status in self._good, how=how, output=output)


def _tail(process: subprocess.Popen[bytes]) -> str:
    """Read all that a process writes and return the end of it."""
    assert process.stdout is not None  # noqa: S101 - a pipe, as we asked for
    kept = b""
    while chunk := process.stdout.read(OUTPUT):
        kept = (kept + chunk)[-OUTPUT:]
    return kept.decode(errors="replace")


def _kill(process: subprocess.Popen[bytes]) -> None:
    _kill_group(process.pid)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
