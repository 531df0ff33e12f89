import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostblk.disk.call import Calls
from vhostblk.disk.memory import Memory
from vhostblk.errors import VhostBlkError

SIZE = 1 << 40  # far more than any test machine has
PAGE = mmap.PAGESIZE


@pytest.fixture
def disk() -> Iterator[Memory]:
    """An open disk of 1 TiB."""
    disk = Memory(SIZE)
    disk.open()
    yield disk
    disk.close()


def resident(disk: Memory) -> int:
    """Return the bytes of the disk that have memory behind them, as the kernel counts them."""
    start = disk.native().address
    with Path("/proc/self/smaps").open() as smaps:
        found = False
        for line in smaps:
            first = line.split()[0]
            if "-" in first:
                low, high = (int(number, 16) for number in first.split("-"))
                found = low <= start < high
            elif found and first == "Rss:":
                return int(line.split()[1]) * 1024
    raise AssertionError("the disk's mapping is not in smaps")


def fetch(disk: Memory, offset: int, length: int) -> bytes:
    """Read through two views."""
    data = bytearray(length)
    views = [memoryview(data)[: length // 3], memoryview(data)[length // 3 :]]
    disk.read(offset, views)
    return bytes(data)


def test_it_reads_what_was_written(disk: Memory) -> None:
    """Bytes come back where they were put, in the order of the views."""
    disk.write(SIZE - 1024, [memoryview(b"a" * 512), memoryview(b"b" * 512)])
    assert fetch(disk, SIZE - 1024, 1024) == b"a" * 512 + b"b" * 512
    assert fetch(disk, SIZE // 2, 512) == bytes(512)


def test_memory_comes_with_the_first_write_and_goes_with_a_discard(disk: Memory) -> None:
    """A page costs memory from its first write to its discard; reading costs none."""
    fetch(disk, 0, 1 << 20)
    assert resident(disk) == 0
    for at in range(0, 16 << 20, 1 << 20):
        disk.write(at, [memoryview(b"x" * 512)])
    assert resident(disk) == 16 * PAGE
    disk.discard(0, 8 << 20)
    assert resident(disk) == 8 * PAGE
    assert fetch(disk, 1 << 20, 512) == bytes(512)
    disk.write_zeroes(8 << 20, 8 << 20, unmap=True)
    assert resident(disk) == 0


@pytest.mark.parametrize(
    ("offset", "length"),
    [(512, 512), (512, PAGE), (0, 3 * PAGE), (PAGE - 512, PAGE + 1024), (2 * PAGE, 512)],
)
@pytest.mark.parametrize("how", ["discard", "unmap", "zero"])
def test_edges_of_a_discard_are_cleared_too(
    disk: Memory, how: str, offset: int, length: int
) -> None:
    """The range reads as zeroes, and not a byte beside it."""
    disk.write(0, [memoryview(b"\xff" * 4 * PAGE)])
    if how == "discard":
        disk.discard(offset, length)
    else:
        disk.write_zeroes(offset, length, unmap=how == "unmap")
    end = offset + length
    expected = b"\xff" * offset + bytes(length) + b"\xff" * (4 * PAGE - end)
    assert fetch(disk, 0, 4 * PAGE) == expected


def test_zeroes_without_unmap_keep_their_memory(disk: Memory) -> None:
    """Who does not welcome a hole gets none."""
    disk.write(0, [memoryview(b"x" * 2 * PAGE)])
    disk.write_zeroes(0, 2 * PAGE, unmap=False)
    assert resident(disk) == 2 * PAGE
    assert fetch(disk, 0, 2 * PAGE) == bytes(2 * PAGE)


def test_the_core_finds_the_bytes_at_the_address(disk: Memory) -> None:
    """`native` names the very memory that the Python methods use."""
    native = disk.native()
    assert native.size == SIZE
    disk.write(4096, [memoryview(b"here")])
    assert ctypes.string_at(native.address + 4096, 4) == b"here"


def test_nothing_is_volatile_and_discards_are_by_the_page() -> None:
    """What the device is told of a memory disk."""
    info = Calls(Memory(1 << 20)).info()
    assert (info.size, info.volatile, info.discard_alignment) == (1 << 20, False, PAGE)


def test_it_stays_out_of_core_dumps(disk: Memory) -> None:
    """A guest's data is marked not to be dumped (VmFlags dd), and for small pages (nh)."""
    start = f"{disk.native().address:x}-"
    text = Path("/proc/self/smaps").read_text()
    block = text[text.index(start) :]
    flags = block[block.index("VmFlags:") :].splitlines()[0].split()
    assert {"dd", "nh", "nr"} <= set(flags)


def test_too_much_is_an_error_that_says_so() -> None:
    """More addresses than there are end in one line, not in a traceback."""
    with pytest.raises(VhostBlkError, match=r"bytes cannot be had .* ask for less"):
        Memory(1 << 60).open()


def test_it_can_be_closed_and_opened_again(disk: Memory) -> None:
    """Closing forgets everything."""
    disk.write(0, [memoryview(b"x" * 512)])
    disk.close()
    disk.close()
    disk.open()
    assert fetch(disk, 0, 512) == bytes(512)
