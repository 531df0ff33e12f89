"""A daemon to talk to, and the fixture of the plugin also where the package is not installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_peers.qsd import SIZE, Connect, Daemon, storage_daemon

from vhostblk.guest.pytest_plugin import vhost_user_guest

__all__ = ["vhost_user_guest"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Run qemu-storage-daemon with an empty disk and four queues."""
    with storage_daemon(tmp_path, SIZE) as running:
        yield running


@pytest.fixture
def connect(daemon: Daemon, vhost_user_guest: Connect) -> Connect:
    """Connect guests to the daemon."""
    return lambda **options: vhost_user_guest(daemon.path, **options)
