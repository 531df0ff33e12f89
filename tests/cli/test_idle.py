"""What an idle server costs."""

import time
from pathlib import Path

import proc
import pytest
import running

from vhostblk.guest import Guest

SETTLE_SECONDS = 12
"""Behind the last request of a guest that is new: some of its requests are looked at then."""
IDLE_SECONDS = 10


@pytest.mark.slow
def test_idle_server_is_not_woken(tmp_path: Path) -> None:
    """With a guest that does nothing no thread wakes up, neither worker nor control plane."""
    pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    path = tmp_path / "s"
    with running.serving(image, socket=path) as server:
        with Guest.connect(path) as guest:
            before = proc.switches(server.pid)
            guest.read(0, 512)
            assert proc.switches(server.pid) != before, "serving is seen"
            time.sleep(SETTLE_SECONDS)
            before = proc.switches(server.pid)
            time.sleep(IDLE_SECONDS)
            assert proc.switches(server.pid) == before
            assert len(before) > 1, "a worker among them"
        running.end(server)
