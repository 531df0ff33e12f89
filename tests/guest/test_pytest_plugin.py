import tomllib
from collections.abc import Callable
from pathlib import Path

from guest_peers.qsd import storage_daemon

from vhostblk.guest import Guest
from vhostblk.guest.pytest_plugin import closing_guests


def test_guests_are_closed(tmp_path: Path) -> None:
    """What the fixture made is closed when the test ends."""
    with storage_daemon(tmp_path, 1 << 20) as daemon:
        with closing_guests() as connect:
            guest = connect(daemon.path, queues=2)
            assert guest.read(0, 512) == bytes(512)
        assert guest.frontend.connection.fileno() == -1
        assert guest.queues == []


def test_fixture_connects(tmp_path: Path, vhost_user_guest: Callable[..., Guest]) -> None:
    """The fixture takes the arguments of Guest.connect."""
    with storage_daemon(tmp_path, 1 << 20) as daemon:
        assert vhost_user_guest(daemon.path, queue_size=16).queues[0].ring.shape.size == 16


def test_plugin_is_declared() -> None:
    """Installing the package makes pytest load this plugin, and the one that serves disks."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    declared = project["project"]["entry-points"]["pytest11"]
    assert declared == {
        "vhostblk": "vhostblk.guest.pytest_plugin",
        "vhostblk-kit": "vhostblk.kit.plugin",
    }
