"""A disk that cannot be called as the contract says is refused before a guest asks."""
# ruff: noqa: ARG002 - parameters are what these disks are about

from collections.abc import AsyncIterator, Iterator, Sequence
from re import escape

import pytest

from vhostblk.disk.api import DiskInfo, Extent
from vhostblk.disk.call import Calls
from vhostblk.errors import VhostBlkError


class Good:
    """The two duties."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=4096)

    def read(self, offset: int, views: Sequence[memoryview]) -> object:
        return None


class Turned(Good):
    """Data first."""

    def write(self, data: Sequence[memoryview], offset: int) -> None: ...


class NoSelf(Good):
    """Written as a function."""

    def read(offset: int, views: Sequence[memoryview]) -> None: ...  # type: ignore[misc,override] # noqa: N805


class NoUnmap(Good):
    """A parameter too few."""

    def write_zeroes(self, offset: int, length: int) -> None: ...


class Returns(Good):
    """Of a contract where a read returns bytes."""

    def read(self, offset: int, length: int) -> bytes:  # type: ignore[override]
        return bytes(length)


class Wants(Good):
    """A parameter too many."""

    def flush(self, flags: int) -> None: ...


class Waits(Good):
    """Asked by who cannot wait."""

    async def info(self) -> DiskInfo:  # type: ignore[override]
        return DiskInfo(size=4096)


class WaitsForExtents(Good):
    """The same."""

    async def block_status(self, offset: int, length: int) -> AsyncIterator[Extent]:
        yield Extent(offset, length, hole=False)


class Yields(Good):
    """Returns a generator that nobody runs."""

    def write(self, offset: int, views: Sequence[memoryview]) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    ("disk", "told"),
    [
        (Turned(), "Turned.write"),
        (Turned(), "write def write(self, offset, views)"),
        (NoSelf(), "write def read(self, offset, views)"),
        (NoUnmap(), "write def write_zeroes(self, offset, length, *, unmap)"),
        (Returns(), "write def read(self, offset, views)"),
        (Wants(), "write def flush(self)"),
        (Waits(), "Waits.info is async, and is called by who cannot wait: write def info(self)"),
        (WaitsForExtents(), "write def block_status(self, offset, length)"),
        (Yields(), "Yields.write has a yield in it"),
    ],
)
def test_what_cannot_be_called_is_refused(disk: object, told: str) -> None:
    """In one line that says what to write."""
    with pytest.raises(VhostBlkError, match=escape(told)) as refused:
        Calls(disk)
    assert "\n" not in str(refused.value)


def test_names_are_a_disks_own() -> None:
    """Other names, more parameters with defaults, ``*args`` and a ``fua`` without one will do."""

    class Free(Good):
        def read(self, at: int, into: Sequence[memoryview], hint: int = 0) -> object:
            return None

        def write(self, offset: int, views: Sequence[memoryview], *, fua: bool) -> None: ...

        def write_zeroes(self, *args: object, **kwargs: object) -> None: ...

    assert Calls(Free()).can.fua


@pytest.mark.parametrize("data", [b"x" * 512, bytearray(512), memoryview(bytes(512))])
def test_data_from_a_read_is_an_error(data: object) -> None:
    """The guest would take its own memory for what is on the disk."""

    class Gives(Good):
        def read(self, offset: int, views: Sequence[memoryview]) -> object:
            return data

    with pytest.raises(TypeError, match=escape("copy into the views, view[:] =")):
        Calls(Gives()).read(0, [memoryview(bytearray(512))])


def test_a_count_from_a_read_is_nobodys_business() -> None:
    """``return os.preadv(…)`` is what many write."""

    class Counts(Good):
        def read(self, offset: int, views: Sequence[memoryview]) -> object:
            return 512

    assert Calls(Counts()).read(0, [memoryview(bytearray(512))]) is None
