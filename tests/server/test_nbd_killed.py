"""An NBD server that is killed again and again under a load that checks every byte."""

import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from nbd_servers import nbdkit
from server_kit.serving import Serving

from vhostblk.guest.load import Load
from vhostblk.guest.load_run import LoadRun

FAR_MORE = 10_000_000
"""Requests: the load ends when it is told to."""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_request_fails_and_no_byte_is_wrong(server: Serving, how: signal.Signals) -> None:
    """What is under way is held, and ends well; what was written is read again at the end."""
    pause = threading.Event()
    with tempfile.TemporaryDirectory(prefix="nbd") as place, ThreadPoolExecutor(1) as pool:
        image = Path(place) / "disk.img"
        image.write_bytes(bytes(4 << 20))
        with nbdkit(Path(place), "file", str(image)) as nbd:
            path = server.add_written(f"nbd:unix:{nbd.socket}")
            load = Load(op="rw", mix=50, depth=16, requests=FAR_MORE, verify=True)
            with closing(LoadRun.connect(path, load)) as run:
                loaded = pool.submit(run.run)
                for _ in range(5):
                    pause.wait(0.2)
                    nbd.end(how)
                    nbd.start()
                pause.wait(0.2)
                run.stop()
                report = loaded.result(60)
            server.stop()
    assert not any(report.failed.values())
    assert report.checked
