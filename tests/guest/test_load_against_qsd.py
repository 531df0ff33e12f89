"""The load generator against qemu-storage-daemon, whose disk is then looked at."""

from typing import get_args

import pytest
from guest_peers.qsd import Daemon

from vhostblk.guest import GuestError
from vhostblk.guest.load import Load, Wait

run_module = pytest.importorskip(
    "vhostblk.guest.load_run", reason="no load generator", exc_type=ImportError
)


@pytest.mark.parametrize("wait", get_args(Wait))
@pytest.mark.parametrize("features", [True, False], ids=["indirect+event", "bare"])
def test_a_verified_load(daemon: Daemon, wait: Wait, *, features: bool) -> None:
    """Two queues write, read and read again; the last sector written is in the file."""
    load = Load(
        op="rw",
        bytes=2048,
        depth=4,
        queues=2,
        requests=80,
        verify=True,
        size=128 << 10,
        event_idx=features,
        indirect=features,
        wait=wait,
        tag=9,
    )
    with run_module.LoadRun.connect(daemon.path, load) as run:
        assert run.server == daemon.process.pid
        report = run.run()
    assert (report.requests, report.plan.event_idx) == (80, features)
    assert report.checked == report.read.requests + 64
    assert not any(report.failed.values())
    assert report.server_cpu_us is not None
    assert report.server_cpu_us > 0
    image = daemon.image.read_bytes()
    sectors = [int.from_bytes(image[at : at + 8], "little") for at in range(0, 128 << 10, 512)]
    assert sectors == list(range(256))
    assert not any(image[128 << 10 :])


def test_it_has_no_packed_rings(daemon: Daemon) -> None:
    """That is said in one line."""
    with pytest.raises(GuestError, match="the back-end offers no packed rings"):
        run_module.LoadRun.connect(daemon.path, Load(packed=True))
