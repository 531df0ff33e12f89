import asyncio
import errno
from collections.abc import Iterator, Sequence

import pytest

from vhostblk.disk.api import Disk, DiskInfo, Extent
from vhostblk.disk.call import Abilities, Calls, defines, methods, offered, run, starts_writeback
from vhostblk.errors import VhostBlkError

SIZE = 4 << 20


class Least:
    """The two duties and nothing else; no subclass of anything."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=SIZE)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            view[:] = offset.to_bytes(8, "little")[:1] * len(view)


class Plain(Disk):
    """Writes and flushes, and notes what is asked of it."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)
        self.log: list[tuple[object, ...]] = []

    def info(self) -> DiskInfo:
        return DiskInfo(size=SIZE)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        self.log.append(("write", offset, sum(map(len, views))))
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self) -> None:
        self.log.append(("flush",))


class Async(Plain):
    """The same, all of it ``async``."""

    async def write(self, offset: int, views: Sequence[memoryview]) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        Plain.write(self, offset, views)

    async def flush(self) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        Plain.flush(self)


class Stable(Plain):
    """Makes one write stable by itself."""

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> None:
        self.log.append(("write", offset, sum(map(len, views)), fua))


class Whole(Plain):
    """Defines everything."""

    def discard(self, offset: int, length: int) -> None:
        self.log.append(("discard", offset, length))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        self.log.append(("zeroes", offset, length, unmap))

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, hole=True)

    def open(self) -> None:
        self.log.append(("open",))

    def close(self) -> None:
        self.log.append(("close",))


def finish(disk: Plain, how: str, *args: object, **kwargs: object) -> list[tuple[object, ...]]:
    """Call a method of `Calls`, wait for it, and return what the disk was asked."""
    asyncio.run(run(getattr(Calls(disk), how), *args, **kwargs))
    return disk.log


@pytest.mark.parametrize("kind", [Plain, Async])
def test_fua_falls_back_to_a_flush_behind_the_write(kind: type[Plain]) -> None:
    """A disk without ``fua`` is written, then flushed, plain or async."""
    log = finish(kind(), "write", 512, [memoryview(b"x" * 512)], fua=True)
    assert log == [("write", 512, 512), ("flush",)]


@pytest.mark.parametrize("kind", [Plain, Async])
def test_a_write_is_not_flushed_without_being_asked(kind: type[Plain]) -> None:
    """Without fua the write is all there is."""
    log = finish(kind(), "write", 0, [memoryview(b"x" * 512)])
    assert log == [("write", 0, 512)]


def test_fua_is_left_to_a_disk_that_takes_it() -> None:
    """A `write` with a ``fua`` keyword is told, and no flush follows."""
    log = finish(Stable(), "write", 0, [memoryview(b"x" * 512)], fua=True)
    assert log == [("write", 0, 512, True)]
    assert methods(Stable()).fua
    assert not methods(Plain()).fua


@pytest.mark.parametrize("kind", [Plain, Async])
def test_zeroes_are_written_in_chunks_of_a_mebibyte(kind: type[Plain]) -> None:
    """A disk without `write_zeroes` is written zeroes, 1 MiB at most at a time, then flushed."""
    disk = kind()
    disk.data[:] = b"\xff" * SIZE
    log = finish(disk, "write_zeroes", 512, (2 << 20) + 512, unmap=True, fua=True)
    assert log == [
        ("write", 512, 1 << 20),
        ("write", 512 + (1 << 20), 1 << 20),
        ("write", 512 + (2 << 20), 512),
        ("flush",),
    ]
    end = 512 + (2 << 20) + 512
    assert disk.data[:512] == b"\xff" * 512
    assert not any(disk.data[512:end])
    assert disk.data[end:] == b"\xff" * (SIZE - end)


def test_zeroes_are_left_to_a_disk_that_makes_them() -> None:
    """`write_zeroes` of the disk's own is told whether a hole is welcome; fua is a flush."""
    log = finish(Whole(), "write_zeroes", 0, SIZE, unmap=True, fua=True)
    assert log == [("zeroes", 0, SIZE, True), ("flush",)]


def test_plain_methods_leave_nothing_to_await() -> None:
    """A plain disk is served by plain calls: no coroutine is made, whatever it returns."""

    class Chatty(Plain):
        def flush(self) -> int:  # type: ignore[override]
            return 7

    calls = Calls(Chatty())
    assert calls.write(0, [memoryview(b"x" * 512)], fua=True) is None
    assert calls.write_zeroes(0, SIZE) is None
    assert calls.flush() is None


def test_a_failing_step_ends_the_request() -> None:
    """An async write that fails is not followed by its flush."""

    class Full(Async):
        async def write(self, offset: int, views: Sequence[memoryview]) -> None:  # type: ignore[override]
            del offset, views
            raise OSError(errno.ENOSPC, "full")

    disk = Full()
    with pytest.raises(OSError, match="full"):
        finish(disk, "write", 0, [memoryview(b"x" * 512)], fua=True)
    assert disk.log == []


def test_two_methods_make_a_read_only_disk() -> None:
    """Any object with info and read serves; it is read-only and holds nothing volatile."""
    calls = Calls(Least())
    info = calls.info()
    assert info.read_only
    assert not info.volatile
    assert calls.abilities() == Abilities(
        write=False, flush=False, discard=False, write_zeroes=False, fua=False, block_status=False
    )
    assert calls.open() is None
    assert calls.flush() is None
    assert calls.close() is None
    assert list(calls.block_status(512, 1024)) == [Extent(512, 1024, hole=False)]


def test_what_is_missing_is_refused_by_errno() -> None:
    """A write without `write` is EROFS, a discard without `discard` EOPNOTSUPP."""
    calls = Calls(Least())
    with pytest.raises(OSError, match="no write") as caught:
        calls.write(0, [])
    assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError, match="no write") as caught:
        calls.write_zeroes(0, 512)
    assert caught.value.errno == errno.EROFS
    with pytest.raises(OSError, match="no discard") as caught:
        calls.discard(0, 512)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_the_contracts_own_bodies_do_not_count() -> None:
    """A subclass of `Disk` can what it defines, not what it inherits from `Disk`."""
    assert not defines(Plain(), "discard")
    assert defines(Whole(), "discard")
    assert methods(Plain()) == Abilities(
        write=True, flush=True, discard=False, write_zeroes=False, fua=False, block_status=False
    )


def test_the_whole_contract_is_called_through() -> None:
    """Every method a disk defines itself is the one that is called."""
    disk = Whole()
    calls = Calls(disk)
    for pending in (calls.open(), calls.discard(512, 1024), calls.close()):
        assert pending is None
    assert list(calls.block_status(0, 512)) == [Extent(0, 512, hole=True)]
    assert disk.log == [("open",), ("discard", 512, 1024), ("close",)]


def test_info_narrows_what_is_offered() -> None:
    """Read-only wins over every method; a longest discard of 0 bytes means none."""
    can = methods(Whole())
    assert offered(can, DiskInfo(size=SIZE)) == can
    frozen = offered(can, DiskInfo(size=SIZE, read_only=True))
    assert (frozen.write, frozen.discard, frozen.write_zeroes) == (False, False, False)
    limited = offered(can, DiskInfo(size=SIZE, max_discard=0, max_write_zeroes=0))
    assert (limited.write, limited.discard, limited.write_zeroes) == (True, False, False)


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (DiskInfo(size=1000), "Odd: size 1000 is not a multiple of its 512-byte blocks"),
        (DiskInfo(size=-512), "Odd: size -512 is not a disk's"),
        (DiskInfo(size=0), "Odd: size 0 is not a disk's"),
        (DiskInfo(size=0, block_size=256), "block size 256 is not a power of two"),
        (DiskInfo(size=0, block_size=1536), "block size 1536 is not a power of two"),
        (DiskInfo(size=512, physical_block_size=100), "physical_block_size 100 is not a multiple"),
    ],
)
def test_info_that_cannot_be_is_refused(info: DiskInfo, text: str) -> None:
    """Numbers that no device could promise are an error in one line."""

    class Odd(Least):
        def info(self) -> DiskInfo:
            return info

    with pytest.raises(VhostBlkError, match=text):
        Calls(Odd()).info()


def test_a_class_is_no_disk() -> None:
    """Somebody who forgot to make one is told."""
    with pytest.raises(VhostBlkError, match=r"Least is a class, not a disk: make one, Least\("):
        Calls(Least)


@pytest.mark.parametrize("thing", [object(), 7])
def test_an_object_without_the_duties_is_no_disk(thing: object) -> None:
    """What lacks info or read is refused by name."""
    with pytest.raises(VhostBlkError, match="is not a disk: it defines no method 'info'"):
        Calls(thing)


def test_writeback_starts_as_the_disk_says() -> None:
    """The cache switch starts True unless the disk has a ``writeback`` that is not."""
    disk = Plain()
    assert starts_writeback(disk)
    disk.writeback = False  # type: ignore[attr-defined]
    assert not starts_writeback(disk)
