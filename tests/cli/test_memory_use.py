"""What a server holds in memory for itself: with one device, and for each more."""

import re
from pathlib import Path

import pytest
import running

from vhostblk.guest import Guest, Request

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

MOST_OF_ONE = 40 << 20
MOST_OF_EACH = 1 << 20
QUEUES = 4
DEPTH = 64


def private(pid: int) -> int:
    """Return bytes of RssAnon and RssFile: guest memory is RssShmem."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * sum(map(int, re.findall(r"^Rss(?:Anon|File):\s+(\d+) kB$", status, re.MULTILINE)))


def held(directory: Path, devices: int) -> int:
    """Serve idle devices, each with a front-end and with all of its queues used before."""
    directory.mkdir()
    sockets = [directory / f"s{i}" for i in range(devices)]
    keys = f'disk = "null:64M"\nnum_queues = {QUEUES}\nqueue_size = 256\n'
    tables = [f'[[device]]\nsocket_path = "{path}"\n{keys}' for path in sockets]
    (directory / "f.toml").write_text("\n".join(tables))
    process = running.start("-m", "vhostblk", "serve", "-q", "--config", "f.toml", cwd=directory)
    guests: list[Guest] = []
    try:
        for path in sockets:
            running.wait_for_socket(path, process)
            guests.append(Guest.connect(path, queues=QUEUES, queue_size=256))
        for guest in guests:
            asked = [
                guest.submit(Request.read(8 * i, 4096), queue=queue)
                for queue in range(QUEUES)
                for i in range(DEPTH)
            ]
            assert {guest.wait(one).status for one in asked} == {0}
        return private(process.pid)
    finally:
        for guest in guests:
            guest.close()
        running.end(process)


@pytest.mark.slow
def test_idle_devices_cost_little(tmp_path: Path) -> None:
    """A server with one device has 40 MB, and 1 MB for each further one that is idle."""
    one, many = held(tmp_path / "one", 1), held(tmp_path / "many", 9)
    assert one <= MOST_OF_ONE
    assert many - one <= 8 * MOST_OF_EACH
