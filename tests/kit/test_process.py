from collections.abc import Callable
from pathlib import Path

import pytest

from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest
from vhostblk.kit.plugin import vhostblk_spawn
from vhostblk.kit.process import ServerProcess

__all__ = ["vhostblk_spawn"]


@pytest.mark.slow
def test_server_can_be_killed_and_started_again(
    tmp_path: Path, vhostblk_spawn: Callable[..., ServerProcess]
) -> None:
    """A guest finds it again on the same socket, and what a file kept."""
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    server = vhostblk_spawn("disk.img", cwd=tmp_path)
    with Guest.connect(server.socket) as guest:
        guest.write(8, b"x" * 4096)
        before = server.pid
        server.kill()
        with pytest.raises(VhostBlkError, match="does not run"):
            _ = server.pid
        server.start()
        assert server.pid != before
        guest.reconnect()
        assert guest.read(8, 4096) == b"x" * 4096
    assert server.stop() == 0
    assert "front-end" in server.log


@pytest.mark.slow
def test_server_that_does_not_start_says_why() -> None:
    """Its log is in the error."""
    with pytest.raises(VhostBlkError, match=r"does not start: .*/nothing-there"):
        ServerProcess("/nothing-there")
