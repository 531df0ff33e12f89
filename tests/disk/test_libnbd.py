import errno
import socket
import tempfile
from pathlib import Path

import pytest

from vhostblk.disk import libnbd
from vhostblk.errors import VhostBlkError


def test_a_library_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the package that has it."""
    monkeypatch.setattr(libnbd, "LIBRARY", "libnbd-none.so.0")
    with pytest.raises(VhostBlkError, match=r"needs the library libnbd-none\.so\.0: apt install"):
        libnbd.Handle()


def test_what_the_library_refuses_is_an_error_with_its_reason() -> None:
    """A command without a connection: EINVAL or ENOTCONN, and text."""
    handle = libnbd.Handle()
    with pytest.raises(OSError, match="nbd_aio_flush") as caught:
        handle.call("aio_flush", libnbd.NOBODY, 0)
    assert caught.value.errno in {errno.EINVAL, errno.ENOTCONN}
    assert handle.completed() == 0
    handle.close()


def test_a_server_that_says_nothing_is_given_up() -> None:
    """In time, or at once when it is called off."""
    with tempfile.TemporaryDirectory(prefix="nbd") as directory, socket.socket(socket.AF_UNIX) as s:
        path = Path(directory) / "s"
        s.bind(str(path))
        s.listen()
        for seconds, called_off in ((0.01, False), (60.0, True)):
            handle = libnbd.Handle()
            handle.call("aio_connect_unix", str(path).encode())
            with pytest.raises(TimeoutError, match="no answer within"):
                handle.wait_until_ready(seconds, lambda called_off=called_off: called_off)  # type: ignore[misc]
            handle.close()
