"""Disks that raise what no disk should, or are asked for two things at once."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from server_kit.disks import Ram, Saving
from server_kit.serving import Serving, names, serving, until

from vhostblk.engine.choose import EngineName
from vhostblk.errors import VhostBlkError
from vhostblk.guest.guest import Guest

Connect = Callable[..., Guest]
X = b"x" * 512


class Shared(Ram):
    """Locked while rings run; takes its time to become larger."""

    lock_while_running = True

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.bugs = 0

    def lock(self) -> None:
        self._note("lock")
        if self.bugs:
            self.bugs -= 1
            raise RuntimeError("the storage is not there")

    def unlock(self) -> None:
        self._note("unlock")

    async def resize(self, size: int) -> None:
        self._note("resize")
        await asyncio.to_thread(self.go_on.wait, 10)
        self._note("resized")
        self.data = self.data.ljust(size, b"\0")


def test_a_disk_whose_size_changes_is_not_left_to_others(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """A guest that stops meanwhile is answered at once; the other end has the disk behind it."""
    disk = Shared()
    guest = vhost_user_guest(server.add(disk))
    assert until(lambda: "lock" in names(disk.calls))

    async def resize() -> object:
        return await server.operations.resize("s1", 2 * len(disk.data))

    resizing = threading.Thread(target=lambda: server.run(resize()))
    resizing.start()
    assert until(lambda: "resize" in names(disk.calls))
    guest.stop()
    assert "unlock" not in names(disk.calls)
    disk.go_on.set()
    resizing.join(10)
    assert names(disk.calls)[-3:] == ["resized", "flush", "unlock"]


def test_a_lock_that_raises_anything_is_tried_again(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """The queues wait, with one line that says for what, and run when it can be had."""
    disk = Shared()
    disk.bugs = 2
    guest = vhost_user_guest(server.add(disk))
    guest.write(0, X)
    assert guest.read(0, 512) == X
    assert caplog.text.count("the queues wait for the disk") == 1
    assert "the disk raised in lock" in caplog.text
    assert "a bug of ours" not in caplog.text


class Odd(Saving):
    """Its flush raises what it likes."""

    error: Exception = ValueError("no flush today")

    def flush(self) -> None:
        self._note("flush")
        raise self.error


@pytest.mark.parametrize("error", [ValueError("no"), VhostBlkError("no")], ids=["bug", "words"])
def test_a_last_flush_that_raises_anything_is_told(engine: EngineName, error: Exception) -> None:
    """The disk is closed all the same, and an operator knows that writes may be lost."""
    disk = Odd()
    disk.error = error
    with pytest.raises(VhostBlkError, match="s1: the last flush failed"), serving(engine) as server:
        server.add(disk)
    assert names(disk.calls) == ["open", "flush", "close"]
