from collections.abc import Callable
from pathlib import Path

import pytest
from server_kit.disks import Ram

from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest
from vhostblk.kit.host import Host, serving
from vhostblk.kit.plugin import vhostblk_serve

__all__ = ["vhostblk_serve"]


def test_serving_serves_a_disk() -> None:
    """A guest finds the disk, with the options that were given; it is closed at the end."""
    disk = Ram()
    with serving(disk, num_queues=2, serial="x") as path, Guest.connect(path, queues=2) as guest:
        guest.write(0, b"a" * 512, queue=1)
        assert guest.get_id() == b"x"
        assert disk.data[:512] == b"a" * 512
    assert disk.calls[-1] == ("close",)
    assert not path.parent.exists()


def test_host_serves_several(tmp_path: Path) -> None:
    """Disks of one host have sockets of their own, where the caller says."""
    with Host("reference", directory=tmp_path) as host:
        paths = [host.add("memory:1M"), host.add("null:2M")]
        assert [path.parent for path in paths] == [tmp_path] * 2
        for path, sectors in zip(paths, (2048, 4096), strict=True):
            with Guest.connect(path, queues=4) as guest:
                assert guest.capacity == sectors
    assert not any(path.exists() for path in paths)


def test_disk_that_cannot_be_had_is_told() -> None:
    """Its own error reaches the test, and nothing is left running."""
    with pytest.raises(VhostBlkError, match="nothing-there"), serving("file:/nothing-there"):
        pass
    with pytest.raises(VhostBlkError, match="no engine"):
        Host("other")  # type: ignore[arg-type]  # that is the test


def test_fixture_serves(vhostblk_serve: Callable[..., Path]) -> None:
    """The fixture takes the arguments of serving, several times."""
    for size in (1, 2):
        with Guest.connect(vhostblk_serve(Ram(size << 20), engine="reference")) as guest:
            assert guest.capacity == size * 2048
