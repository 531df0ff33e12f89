"""Disks that return what they have read, as other contracts want it."""

from collections.abc import Callable, Sequence

import pytest
from server_kit.serving import Serving

from vhostblk.disk.api import DiskInfo
from vhostblk.guest import Guest, Request
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]


class Plain:
    """A view of guest memory is returned, which must not outlive the request either."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=1 << 20)

    def read(self, offset: int, views: Sequence[memoryview]) -> object:
        if offset:
            views[0][:] = b"x" * len(views[0])
            return None
        return views[0][:512]


class Waits(Plain):
    """The same, behind an await."""

    async def read(self, offset: int, views: Sequence[memoryview]) -> object:
        return super().read(offset, views)


class Threads(Plain):
    """The same, by other threads."""

    parallel = 4


class WaitsThreads(Waits):
    """Both."""

    parallel = 4


@pytest.mark.parametrize("kind", [Plain, Waits, Threads, WaitsThreads])
def test_data_that_is_returned_fails_the_read(
    kind: type[Plain], server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The guest has an I/O error, the log says what to write, and the next read is served."""
    guest = vhost_user_guest(server.add(kind()))
    assert guest.run(Request.read(0, 4096)).status == Status.IOERR
    assert guest.read(8, 4096) == b"x" * 4096
    assert f"{kind.__name__}.read returned memoryview" in caplog.text
    assert "bug in it" not in caplog.text
