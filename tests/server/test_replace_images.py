"""Another image behind a device: whose lock it is, before, between and behind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from server_kit.replacing import MIB, X, Y, image, replace_by
from server_kit.serving import Serving, until

from vhostblk.disk.file import File, LockWhen
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, StatusError
from vhostblk.spec.vhost_user import BackendRequest

Connect = Callable[..., Guest]


def test_other_size_is_told(server: Serving, vhost_user_guest: Connect, tmp_path: Path) -> None:
    """Larger or smaller, the guest hears of it and has no more than there is."""
    guest = vhost_user_guest(server.add(File(image(tmp_path / "a"))))
    for size in (2 * MIB, MIB // 2):
        row = replace_by(server, str(image(tmp_path / "b", b"b", size)))
        assert isinstance(row, dict)
        assert row["size"] == size
        assert guest.channel.receive().request == BackendRequest.CONFIG_CHANGE_MSG
        assert guest.config().capacity == size // 512
        assert guest.read(size // 512 - 8, 4096) == b"b" * 4096
        with pytest.raises(StatusError):
            guest.read(size // 512, 512)
        image(tmp_path / "b", b"b", size).rename(tmp_path / f"was-b-{size}")


def test_same_image_with_another_cache_mode(
    server: Serving, vhost_user_guest: Connect, direct_image: Path
) -> None:
    """Its own lock is no obstacle, and stays: nobody else gets the image in between or later."""
    guest = vhost_user_guest(server.add(File(direct_image)))
    guest.write(0, X)
    replace_by(server, f"file:{direct_image},cache=writethrough")
    assert guest.read(0, 4096) == X
    other = File(direct_image)
    with pytest.raises(VhostBlkError, match="in use"):
        other.open()
    replace_by(server, f"file:{direct_image},locking=off")
    other.open()
    with pytest.raises(VhostBlkError, match="in use"):
        replace_by(server, str(direct_image))
    other.close()
    guest.write(8, Y)
    assert direct_image.read_bytes()[:8192] == X + Y


def test_image_that_somebody_else_uses(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """The new one is locked before the old one goes; without the lock the old one stays."""
    guest = vhost_user_guest(server.add(File(image(tmp_path / "a", b"a"))))
    other = File(image(tmp_path / "b"))
    other.open()
    with pytest.raises(VhostBlkError, match=r"^s1: .*in use"):
        replace_by(server, str(tmp_path / "b"))
    assert guest.read(0, 4096) == b"a" * 4096
    blocked = File(tmp_path / "a")
    with pytest.raises(VhostBlkError, match="in use"):
        blocked.open()
    other.close()
    replace_by(server, str(tmp_path / "b"))
    blocked.open()
    blocked.close()


def held(path: Path) -> bool:
    """Whether somebody has the image's lock."""
    probe = File(path)
    try:
        probe.open()
    except VhostBlkError:
        return True
    probe.close()
    return False


def test_disk_that_is_locked_while_running(
    server: Serving, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Under a running guest the other one is locked before it serves; the old one is let go."""
    a, b = image(tmp_path / "a", b"a"), image(tmp_path / "b", b"b")
    path = server.add(File(a, lock=LockWhen.WHILE_RUNNING))
    with pytest.raises(VhostBlkError, match="locked while running, and no guest runs here"):
        server.run(server.operations.resize("s1", 2 * MIB))
    guest = vhost_user_guest(path)
    assert until(lambda: held(a))
    reader = File(b)
    reader.open()
    with pytest.raises(VhostBlkError, match=r"^s1: .*in use"):
        replace_by(server, f"file:{b},lock=while-running")
    assert guest.read(0, 512) == b"a" * 512
    reader.close()
    replace_by(server, f"file:{b},lock=while-running")
    assert (held(a), held(b)) == (False, True)
    assert guest.read(0, 512) == b"b" * 512
    server.run(server.operations.resize("s1", 2 * MIB))
    guest.stop()
    assert not held(b)
    replace_by(server, f"file:{a},lock=while-running")
    assert (held(a), held(b)) == (False, False)
    guest.start()
    assert guest.read(0, 512) == b"a" * 512
    assert held(a)
    replace_by(server, str(b))
    guest.stop()
    assert (held(a), held(b)) == (False, True)
