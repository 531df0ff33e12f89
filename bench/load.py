"""The load client: built from client.c against libblkio, run on the sockets of one server."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

from bench.sample import Load, Sample, Unable
from bench.servers import Running

HERE = Path(__file__).parent
FLAGS = ["gcc", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror"]


def build(directory: Path) -> Path:
    """
    Compile the client.

    Args:
        directory: Where to.

    Raises:
        SystemExit: libblkio is not where VHOSTBLK_BLKIO says.
    """
    prefix = Path(os.environ.get("VHOSTBLK_BLKIO", "/usr"))
    if not (prefix / "include/blkio.h").exists():
        raise SystemExit(
            "libblkio is missing: run `make bench`, which unpacks it, or set VHOSTBLK_BLKIO"
        )
    library = next(prefix.glob("lib/*/libblkio.so"), prefix / "lib/libblkio.so").parent
    client = directory / "client"
    command = [*FLAGS, f"-I{prefix / 'include'}", str(HERE / "client.c"), "-o", str(client)]
    command += [f"-L{library}", "-lblkio", f"-Wl,-rpath,{library}"]
    subprocess.run(command, check=True)
    return client


def words(client: Path, server: Running, load: Load, *more: str) -> list[str]:
    """Return the command that puts *load* on *server*."""
    said = [f"{key}={value}" for key, value in asdict(load).items()]
    said.append(f"pid={server.pid}")
    return [str(client), *said, *more, *map(str, server.sockets)]


def run(client: Path, server: Running, load: Load, core: int) -> Sample:
    """
    Drive a server once.

    Args:
        client: From `build`.
        server: Whom.
        load: How.
        core: The CPU the client is pinned to.

    Raises:
        Unable: The server fails the client.
    """
    got = json.loads(_ask(words(client, server, load), core))
    del got["ios"]
    return Sample(**got)


def fill(client: Path, server: Running, size: int, core: int) -> None:
    """Write every byte of the server's disks, so that no run pays for the first touch."""
    count = size * len(server.sockets) >> 20
    if count:
        whole = Load(op="write", bytes=1 << 20, depth=8, order="seq", seconds=0)
        _ask(words(client, server, whole, f"ios={count}"), core)


def _ask(command: list[str], core: int) -> str:
    pinned = ["taskset", "-c", str(core), *command]
    done = subprocess.run(pinned, check=False, capture_output=True, text=True)
    if done.returncode:
        raise Unable(f"client: {done.stderr.strip()}")
    return done.stdout
