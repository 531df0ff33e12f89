"""The servers under measurement: how each is started on a disk, stopped and gone on with."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.sample import Unable

START_SECONDS = 20
EXAMPLES = Path(__file__).parents[1] / "docs/examples"
"""Where the disk in Python is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """
    Disks to measure, all alike.

    Args:
        name: ``null``, ``bare``, ``memory``, ``python``, ``tmpfs``, ``file`` or ``direct``.
        size: Bytes of each.
        path: The file behind them; None where there is none.
        devices: How many, all of one process.
        queues: Of each.
    """

    name: str
    size: int
    path: Path | None = None
    devices: int = 1
    queues: int = 1

    @property
    def disk(self) -> str:
        """What vhostblk is told to serve."""
        match self.name:
            case "null":
                return f"null:{self.size}"
            case "bare":
                return f"null:{self.size},zero=off"
            case "memory":
                return f"memory:{self.size}"
            case "python":
                return f"python:ram:Ram,size={self.size}"
        # The servers have the file open at the same time; they take turns by themselves.
        cache = ",cache=none" if self.name == "direct" else ""
        return f"file:{self.path}{cache},locking=off"


Command = Callable[[Work, Sequence[Path]], list[str]]
"""From a work and a socket for each of its devices to the words that serve it."""


@dataclass(frozen=True, slots=True)
class Server:
    """
    One way to serve.

    Args:
        name: For the table.
        command: How it is started.
    """

    name: str
    command: Command


def vhostblk(name: str = "vhostblk", *, poll: str | None = None) -> Server:
    """Return ours, with its defaults but for *poll*."""

    def command(work: Work, sockets: Sequence[Path]) -> list[str]:
        serve = [sys.executable, "-m", "vhostblk", "serve", "--quiet"]
        if poll is not None:
            serve += ["--poll", poll]
        if len(sockets) == 1:
            queues = ["--num-queues", str(work.queues)]
            return [*serve, *queues, "--socket-path", str(sockets[0]), work.disk]
        tables = [
            f'[[device]]\nsocket_path = "{socket}"\ndisk = "{work.disk}"\n'
            f"num_queues = {work.queues}\n"
            for socket in sockets
        ]
        file = sockets[0].with_suffix(".toml")
        file.write_text("\n".join(tables))
        return [*serve, "--config", str(file)]

    return Server(name, command)


def qsd(aio: str) -> Server:
    """Return qemu-storage-daemon with an iothread, on files by *aio*."""

    def node(work: Work, name: str) -> str:
        if work.path is None:
            # Zeroes what it reads where vhostblk's does.
            zero = "on" if work.name == "null" else "off"
            return f"null-co,node-name={name},size={work.size},read-zeroes={zero}"
        # Native aio is for files without the page cache only.
        direct = ",cache.direct=on" if work.name == "direct" or aio == "native" else ""
        return f"file,node-name={name},filename={work.path},aio={aio},locking=off{direct}"

    def command(work: Work, sockets: Sequence[Path]) -> list[str]:
        words = ["qemu-storage-daemon", "--object", "iothread,id=thread"]
        for number, socket in enumerate(sockets):
            words += ["--blockdev", node(work, f"disk{number}")]
            export = f"vhost-user-blk,id=export{number},node-name=disk{number},writable=on"
            address = f"num-queues={work.queues},addr.type=unix,addr.path={socket}"
            words += ["--export", f"{export},iothread=thread,{address}"]
        return words

    return Server("qsd" if aio == "none" else f"qsd {aio}", command)


def responder(name: str, *options: str) -> Server:
    """Return the minimal polled responder (respond.py), which has one queue."""

    def command(work: Work, sockets: Sequence[Path]) -> list[str]:
        words = [sys.executable, "-m", "bench.respond", *options]
        return [*words, str(sockets[0]), str(work.size)]

    return Server(name, command)


def nbdkit(name: str) -> Server:
    """Return a disk in Python by nbdkit and qemu-storage-daemon, with one queue: nbdkit.py."""

    def command(work: Work, sockets: Sequence[Path]) -> list[str]:
        return [sys.executable, "-m", "bench.nbdkit", str(sockets[0]), str(work.size)]

    return Server(name, command)


def peer(text: str) -> Server:
    """
    Return a server that the command line describes.

    Args:
        text: ``NAME=COMMAND``, words as a shell splits them, with ``{socket}``, ``{size}`` (bytes),
            ``{path}`` (of the file; empty where there is none) and ``{queues}`` filled in.  The
            command must not go to the background.

    Raises:
        SystemExit: It is not of that form.
    """
    name, equals, line = text.partition("=")
    try:
        template = shlex.split(line)
        [word.format(socket="", size="", path="", queues="") for word in template]
    except (ValueError, KeyError, IndexError) as error:
        raise SystemExit(f"--peer {text}: {error}; write NAME='COMMAND {{socket}}'") from error
    if not (name and equals and template and "{socket}" in line):
        raise SystemExit(f"--peer {text}: write NAME='COMMAND ... {{socket}}'")

    def command(work: Work, sockets: Sequence[Path]) -> list[str]:
        filled = {
            "socket": str(sockets[0]),
            "size": str(work.size),
            "path": str(work.path or ""),
            "queues": str(work.queues),
        }
        return [word.format(**filled) for word in template]

    return Server(name, command)


@dataclass(frozen=True, slots=True)
class Running:
    """
    A server that accepts connections.

    Args:
        pid: Of its process.
        sockets: Where; one for each device.
        words: What it was started with.
    """

    pid: int
    sockets: Sequence[Path]
    words: Sequence[str]

    def go_on(self) -> None:
        """Let it have the CPU."""
        os.kill(self.pid, signal.SIGCONT)

    def halt(self) -> None:
        """Stop it where it stands: a server that polls would take the turn of the next one."""
        os.kill(self.pid, signal.SIGSTOP)


@contextmanager
def serving(server: Server, work: Work, directory: Path, core: int) -> Iterator[Running]:
    """
    Run a server for the length of a ``with``; it is halted between turns.

    Args:
        server: Which.
        work: On what.
        directory: For its sockets; short.
        core: The CPU it is pinned to.

    Yields:
        The server, listening and halted.
    """
    safe = "".join(letter if letter.isalnum() else "-" for letter in server.name)
    sockets = [directory / f"{safe}-{number}.sock" for number in range(work.devices)]
    words = server.command(work, sockets)
    environment = {**os.environ, "PYTHONPATH": f"{EXAMPLES}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(["taskset", "-c", str(core), *words], env=environment)
    running = Running(process.pid, sockets, words)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not listening(sockets):
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unable(f"{server.name} did not start: {shlex.join(words)}")
            time.sleep(0.01)
        running.halt()
        yield running
    finally:
        process.terminate()
        if process.poll() is None:
            running.go_on()
        process.wait()
        for socket in sockets:
            socket.unlink(missing_ok=True)


def listening(sockets: Sequence[Path]) -> bool:
    """Tell by the kernel's table (flags 10000): a file is there before anybody listens."""
    rows = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines())
    there = {row[-1] for row in rows if row[3] == "00010000"}
    return all(str(socket) in there for socket in sockets)
