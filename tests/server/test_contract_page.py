"""What the page on the Disk contract says of errors, of views left unfilled, and of types."""

import errno
from collections.abc import Callable, Sequence

import pytest
from server_kit.disks import Ram
from server_kit.serving import Serving

from vhostblk.disk.cache import Cache
from vhostblk.disk.cow import Cow
from vhostblk.guest import Guest, Range, Request
from vhostblk.guest.blk import UNWRITTEN_DATA
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
SECTOR = 512
X = b"x" * SECTOR
REQUESTS = {
    "read": Request.read(0, SECTOR),
    "write": Request.write(0, X),
    "flush": Request.flush(),
    "discard": Request.discard([Range(0, 1)]),
    "write_zeroes": Request.write_zeroes([Range(0, 1)]),
}


class Failing(Ram):
    """Has all methods, each of which raises *error*, if there is one."""

    error: Exception | None = None

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self._raise()
        super().read(offset, views)

    def write(
        self, offset: int, views: Sequence[memoryview], *, fua: bool = False
    ) -> None:  # as the page has it
        del fua
        self._raise()
        super().write(offset, views)

    def flush(self) -> None:
        self._raise()

    def discard(self, offset: int, length: int) -> None:
        del offset, length
        self._raise()

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        del offset, length, unmap
        self._raise()


class ByPlace(Ram):
    """What the page says also goes: ``fua`` without a star."""

    def write(self, offset: int, views: Sequence[memoryview], fua: bool = False) -> None:  # noqa: FBT001, FBT002
        self._note("fua", fua)
        super().write(offset, views)


class Required(Ram):
    """What it says mypy refuses, and a server takes."""

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool) -> None:  # type: ignore[override]
        self._note("fua", fua)
        super().write(offset, views)


ERRORS = [
    *(OSError(getattr(errno, name), "no") for name in ("EIO", "ENOSPC", "EROFS", "EINVAL")),
    *(OSError(code, "no") for code in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)),
    *(OSError("without a number"), OSError(-5, "no"), OSError(1 << 40, "no")),
    NotImplementedError("no"),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_whatever_a_disk_raises_is_ioerr(
    server: Serving, vhost_user_guest: Connect, error: Exception
) -> None:
    """Of every kind of request, whatever the errno; and it goes on."""
    disk = Failing()
    guest = vhost_user_guest(server.add(disk))
    disk.error = error
    for request in REQUESTS.values():
        assert guest.run(request).status == Status.IOERR
    disk.error = None
    for request in REQUESTS.values():
        assert guest.run(request).status == Status.OK


class Bare:
    """No more than it must have."""

    def info(self) -> object:
        return Ram().info()

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        del offset
        for view in views:
            view[:] = bytes(len(view))


class Writable(Bare):
    """It can be written, too."""

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Forget it."""


@pytest.mark.parametrize(
    ("disk", "statuses"),
    [(Bare(), "OK IOERR OK UNSUPP UNSUPP"), (Writable(), "OK OK OK UNSUPP OK")],
    ids=["read-only", "writable"],
)
def test_what_a_class_does_not_define(
    server: Serving, vhost_user_guest: Connect, disk: object, statuses: str
) -> None:
    """What is not offered is UNSUPP, a write IOERR, a flush OK; zeroes are written where it can."""
    guest = vhost_user_guest(server.add(disk))
    seen = [Status(guest.run(request).status).name for request in REQUESTS.values()]
    assert seen == statuses.split()


class Lazy(Ram):
    """Fills the first half of each view."""

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        del offset
        for view in views:
            view[: len(view) // 2] = b"d" * (len(view) // 2)


@pytest.mark.parametrize(
    ("front", "rest"),
    [(lambda disk: disk, UNWRITTEN_DATA), (Cow, UNWRITTEN_DATA), (Cache, 0)],
    ids=["disk", "cow", "cache"],
)
def test_what_a_read_leaves_unfilled(
    server: Serving, vhost_user_guest: Connect, front: Callable[[object], object], rest: int
) -> None:
    """It is what the guest's buffer held, or zeroes where a layer has memory of its own."""
    guest = vhost_user_guest(server.add(front(Lazy())))
    half = 2048
    for _ in range(2):
        assert guest.read(0, 2 * half) == b"d" * half + bytes([rest]) * half


@pytest.mark.parametrize("kind", [ByPlace, Required])
def test_a_write_is_told_whether_it_must_be_stable(
    server: Serving, vhost_user_guest: Connect, kind: type[Ram]
) -> None:
    """By a keyword, whichever way that is written."""
    disk = kind()
    guest = vhost_user_guest(server.add(disk))
    guest.write(0, X)
    assert ("fua", False) in disk.calls
