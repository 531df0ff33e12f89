import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from server_kit.disks import Ram
from server_kit.serving import until

import vhostblk
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.guest import Guest

PROGRAM = """
import sys, vhostblk
from server_kit.disks import Ram
disk = Ram()
vhostblk.serve(disk, sys.argv[1], ready=lambda: print("ready", flush=True))
print(*(call[0] for call in disk.calls))
"""


@pytest.fixture
def path() -> Iterator[Path]:
    """Return a short path for a socket."""
    with TemporaryDirectory(prefix="vhb") as directory:
        yield Path(directory) / "s"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals, path: Path) -> None:
    """Drain, flush, close, exit status 0, no socket left; with a guest that is still attached."""
    tests = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with Guest.connect(path) as guest:
            guest.write(0, bytes(512))
            process.send_signal(number)
            assert process.stdout.read() == "open write flush close\n"
            assert process.wait(10) == 0
    assert not path.exists()


def test_a_connected_descriptor_is_served_to_its_end() -> None:
    """With ``fd`` of a connection the call returns when the front-end leaves."""
    ours, theirs = socket.socketpair()
    disk = Ram()
    serving = threading.Thread(target=lambda: vhostblk.serve(disk, fd=ours.detach()))
    serving.start()
    with Guest(FrontEnd.over(theirs)) as guest:
        guest.start()
        guest.write(0, b"x" * 512)
    serving.join(10)
    assert not serving.is_alive()
    assert disk.data[:512] == b"x" * 512
    assert disk.calls[-1] == ("close",)


def test_one_place_must_be_said(path: Path) -> None:
    """Neither and both of path and fd are refused, before the disk is opened."""
    disk = Ram()
    for arguments in ({}, {"socket_path": path, "fd": 3}):
        with pytest.raises(vhostblk.VhostBlkError, match="say where to serve"):
            vhostblk.serve(disk, **arguments)  # type: ignore[arg-type]
    assert not disk.calls


def test_a_disk_that_is_none_is_told(path: Path) -> None:
    """An object without the two duties is refused, and the socket is not left behind."""
    with pytest.raises(vhostblk.VhostBlkError, match="is not a disk"):
        vhostblk.serve(object(), path)
    assert not path.exists()


def test_a_taken_socket_is_told_before_the_disk_is_opened(path: Path) -> None:
    """Who serves already keeps serving, and the second one's disk is not touched."""
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        disk = Ram()
        with pytest.raises(vhostblk.VhostBlkError, match="in use"):
            vhostblk.serve(disk, path)
        assert not disk.calls
        assert until(path.exists)
