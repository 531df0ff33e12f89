"""Our own programs in processes of their own, as a person or a manager starts them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import activated

import vhostblk

ROOT = Path(__file__).parents[1]
PACKAGES = str(Path(vhostblk.__file__).parents[1])
TIMEOUT_S = 60.0


def start(
    *arguments: str | Path,
    cwd: Path,
    pass_fds: Sequence[int] = (),
    environ: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """
    Start Python with *arguments*, in *cwd*, its stderr a pipe.

    The package is the one under test, an installed one or this tree's, wherever *cwd* is.
    """
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": PACKAGES, **(environ or {})},
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
        text=True,
    )


def start_passed(
    sockets: Mapping[str, int],
    *arguments: str | Path,
    cwd: Path,
    environ: Mapping[str, str] | None = None,
) -> subprocess.Popen[str]:
    """Do the same as systemd does: with descriptors of *sockets*, by name, in this order."""
    passed = [f"{fd}:{name}" for name, fd in sockets.items()]
    words = (activated.__file__, *passed, "--", sys.executable, *arguments)
    return start(*words, cwd=cwd, pass_fds=tuple(sockets.values()), environ=environ)


@contextmanager
def unit(
    directory: Path, *arguments: str | Path
) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """
    Start Python with *arguments* as the service of a socket unit.

    Yields:
        The process, which was passed *directory*/s as "vm0"; and what the manager hears by.
    """
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        listener.bind(str(directory / "s"))
        listener.listen()
        manager.bind(str(directory / "n"))
        manager.settimeout(TIMEOUT_S)
        environ = {"NOTIFY_SOCKET": str(directory / "n")}
        passed = {"vm0": listener.fileno()}
        yield start_passed(passed, *arguments, cwd=directory, environ=environ), manager


def wait_for_socket(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until *path* listens, without connecting: that would be taken for the front-end."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_listening(path):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"nobody listens at {path}"
        time.sleep(0.005)


def is_listening(path: Path) -> bool:
    """
    Look a socket up in the kernel's table.

    Source: Linux, net/unix/af_unix.c, unix_seq_show: flags 10000 are those of a listening socket.
    """
    sockets = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines())
    return any(row[3] == "00010000" and row[-1] == str(path) for row in sockets)


def end(process: subprocess.Popen[str], sig: signal.Signals = signal.SIGTERM) -> str:
    """
    End a server as an operator does.

    Returns:
        Its log; the exit status was 0 and nothing went wrong inside.
    """
    process.send_signal(sig)
    _, log = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, log
    assert "Traceback" not in log, log
    return log


def outcome(*arguments: str | Path, cwd: Path) -> tuple[int, str]:
    """Run something to its own end; return its exit status and stderr."""
    process = start(*arguments, cwd=cwd)
    _, log = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, log


@contextmanager
def serving(
    *arguments: str | Path, socket: Path, pass_fds: Sequence[int] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Run ``vhostblk serve --socket-path`` *socket* with *arguments* around something."""
    words = ("-m", "vhostblk", "serve", "--socket-path", socket, *arguments)
    process = start(*words, cwd=socket.parent, pass_fds=pass_fds)
    try:
        wait_for_socket(socket, process)
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
