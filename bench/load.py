"""The load client: built from client.c against libblkio, run on one socket at a time."""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.servers import Running

SOURCE = Path(__file__).parent / "client.c"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """
    What the client does.

    Args:
        op: ``read`` or ``write``.
        bytes: Of a request.
        depth: Requests under way.
        seconds: How long, after a tenth of it to warm up.
        wait: ``block`` (sleeps on the completion eventfd) or ``poll``.
        order: ``rand`` or ``seq``.
    """

    op: str
    bytes: int
    depth: int
    seconds: float
    wait: str
    order: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """
    What one run gave.

    Args:
        iops: Requests per second.
        p50_us: Median latency.
        p99_us: Latency that one in a hundred exceeds.
        server_cpu_us: CPU time of the server per request.
        client_cpu_us: CPU time of the client per request.
    """

    iops: float
    p50_us: float
    p99_us: float
    server_cpu_us: float
    client_cpu_us: float


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
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{prefix / 'include'}", str(SOURCE)]
    command += ["-o", str(client), f"-L{library}", "-lblkio", f"-Wl,-rpath,{library}"]
    subprocess.run(command, check=True)
    return client


def run(client: Path, server: Running, load: Load, core: int) -> Sample:
    """
    Drive a server once.

    Args:
        client: From `build`.
        server: Whom.
        load: How.
        core: The CPU the client is pinned to.
    """
    words = [load.op, load.bytes, load.depth, load.seconds, load.wait, load.order, 0]
    before, start = server.cpu_us(), time.monotonic()
    done = subprocess.run(
        ["taskset", "-c", str(core), str(client), str(server.socket), *map(str, words)],
        check=True,
        capture_output=True,
        text=True,
    )
    used, elapsed = server.cpu_us() - before, time.monotonic() - start
    got = json.loads(done.stdout)
    return Sample(
        iops=got["iops"],
        p50_us=got["p50_us"],
        p99_us=got["p99_us"],
        # The server's time covers warm-up too; the rate is the same there.
        server_cpu_us=used / (got["iops"] * elapsed),
        client_cpu_us=got["client_cpu_us"],
    )
