from collections.abc import Callable
from pathlib import Path

import pytest
from server_kit.serving import Serving, until

from vhostblk.disk.file import CacheMode, File, LockWhen
from vhostblk.guest.guest import Guest

Connect = Callable[..., Guest]
X, Y = b"x" * 4096, b"y" * 4096


def test_an_image_moves_with_its_guest(
    server: Serving,
    vhost_user_guest: Connect,
    direct_image: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    Both ends of a migration have the image; the one whose guest runs uses it, there and back.

    The other one's rings are started and wait, and what the first one wrote is read on the second.
    """
    ends = [
        File(direct_image, cache=cache, lock=LockWhen.WHILE_RUNNING)
        for cache in (CacheMode.WRITEBACK, CacheMode.NONE)
    ]
    first = vhost_user_guest(server.add(ends[0]))
    first.write(0, X)
    target = vhost_user_guest(server.add(ends[1]))
    assert until(lambda: "the queues wait for the disk" in caplog.text)
    assert not server.devices[1].tenure.held
    first.stop()
    assert target.read(0, 4096) == X
    target.write(0, Y)
    first.start()
    assert not server.devices[0].tenure.held
    target.stop()
    assert first.read(0, 4096) == Y


def test_a_guest_that_dies_leaves_the_image(
    server: Serving, vhost_user_guest: Connect, image: Path
) -> None:
    """A front-end that is killed has the image no longer than its requests take."""
    first = vhost_user_guest(server.add(File(image, lock=LockWhen.WHILE_RUNNING)))
    first.write(0, X)
    target = vhost_user_guest(server.add(File(image, lock=LockWhen.WHILE_RUNNING)))
    first.close()
    assert target.read(0, 4096) == X
