"""The servers under measurement: how each is started on a disk, and what its CPU time is."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Work:
    """
    A disk to measure.

    Args:
        name: ``null``, ``tmpfs`` or ``file``.
        size: Bytes.
        path: The file behind it, None for ``null``.
    """

    name: str
    size: int
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """
    One way to serve a disk.

    Args:
        name: For the table.
        aio: How qemu-storage-daemon reaches a file; None: this is vhostblk.
    """

    name: str
    aio: str | None = None

    def command(self, work: Work, socket: Path) -> list[str]:
        """Return the command that serves *work* on *socket*."""
        if self.aio is None:
            # The servers have the file open at the same time; they take turns by themselves.
            disk = f"null:{work.size}" if work.path is None else f"file:{work.path},locking=off"
            serve = [sys.executable, "-m", "vhostblk", "serve", "-q", "--socket-path", str(socket)]
            return [*serve, disk]
        return [
            "qemu-storage-daemon",
            *("--blockdev", self._node(work)),
            *("--object", "iothread,id=thread"),
            "--export",
            (
                "vhost-user-blk,id=export,node-name=disk,writable=on,iothread=thread,"
                f"addr.type=unix,addr.path={socket}"
            ),
        ]

    def _node(self, work: Work) -> str:
        if work.path is None:
            # vhostblk's null: zeroes what it reads, so must its peer.
            return f"null-co,node-name=disk,size={work.size},read-zeroes=on"
        return f"file,node-name=disk,filename={work.path},aio={self.aio},locking=off"


def peers(work: Work) -> tuple[Peer, ...]:
    """Return who can serve *work*: vhostblk first."""
    ours = Peer("vhostblk")
    if work.path is None:
        return (ours, Peer("qsd", "none"))
    return (ours, Peer("qsd threads", "threads"), Peer("qsd io_uring", "io_uring"))


@dataclass(frozen=True, slots=True)
class Running:
    """
    A server that accepts connections.

    Args:
        pid: Of its process.
        socket: Where.
    """

    pid: int
    socket: Path

    def cpu_us(self) -> float:
        """Return the CPU microseconds its living threads have used."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1000


@contextmanager
def serving(peer: Peer, work: Work, directory: Path, core: int) -> Iterator[Running]:
    """
    Run a server for the length of a ``with``.

    Args:
        peer: Which.
        work: On what.
        directory: For its socket; short.
        core: The CPU it is pinned to.

    Yields:
        The server, once it listens.
    """
    socket = directory / f"{peer.name.replace(' ', '-')}.sock"
    process = subprocess.Popen(["taskset", "-c", str(core), *peer.command(work, socket)])
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{peer.name} did not start")
            time.sleep(0.01)
        yield Running(process.pid, socket)
    finally:
        process.terminate()
        process.wait()
        socket.unlink(missing_ok=True)


def _listens(socket: Path) -> bool:
    """Tell by the kernel's table (flags 10000): the file is there before anybody listens."""
    rows = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines())
    return any(row[3] == "00010000" and row[-1] == str(socket) for row in rows)
