import ctypes
import mmap
import os
from errno import EACCES, EINVAL, ENOMEM
from pathlib import Path

import pytest
from proc import mapped_at

from vhostblk.errors import Refused
from vhostblk.memory.mapping import Mapping, is_in_memory, page_size_of

PAGE = mmap.PAGESIZE


def test_mapping_shares_memory(memory: int) -> None:
    """What is written here is in the file, at the offset that was asked for."""
    mapping = Mapping(os.dup(memory), offset=2 * PAGE, length=PAGE)
    mapping.view(5, 3)[:] = b"abc"
    assert os.pread(memory, 3, 2 * PAGE + 5) == b"abc"
    os.pwrite(memory, b"xyz", 2 * PAGE + 5)
    assert bytes(mapping.view(5, 3)) == b"xyz"
    assert os.path.sameopenfile(mapping.fileno(), memory)
    mapping.release()


def test_mapping_is_not_dumped_inherited_reserved_nor_populated() -> None:
    """DONTDUMP, DONTFORK, NORESERVE, not locked, no huge pages, and not one page touched."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 20)
    mapping = Mapping(fd, offset=0, length=1 << 20)
    status = mapped_at(mapping.address)
    assert {"sh", "dd", "dc", "nr", "rd", "wr"} <= status.flags
    assert not {"lo", "hg"} & status.flags
    assert status.fields["Rss"] == "0 kB"
    assert os.fstat(fd).st_blocks == 0
    mapping.release()


def test_mapping_begins_anywhere_in_a_page(memory: int) -> None:
    """An offset that is no multiple of a page is mapped from the page it lies in."""
    mapping = Mapping(os.dup(memory), offset=PAGE + 100, length=PAGE)
    os.pwrite(memory, b"abc", PAGE + 100)
    assert mapping.address % PAGE == 100
    assert bytes(mapping.view(0, 3)) == b"abc"
    assert mapping.length == PAGE
    mapping.release()


def test_mapping_of_huge_pages_is_aligned_to_them() -> None:
    """A region of a part of a huge page is mapped and unmapped in whole ones."""
    try:
        fd = os.memfd_create("guest", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    except OSError as error:
        pytest.skip(f"this kernel has no huge pages of 2 MiB: {error}")
    os.ftruncate(fd, 8 << 20)
    assert page_size_of(fd) == 2 << 20
    mapping = Mapping(fd, offset=(2 << 20) + PAGE, length=PAGE)
    assert mapping.page_size == 2 << 20
    assert mapping.address % (2 << 20) == PAGE
    mapping.release()


def test_mapping_beyond_the_file_is_refused(memory: int) -> None:
    """A byte beyond the end would be a SIGBUS later; the descriptor is closed."""
    for offset, length in ((0, (4 << 20) + 1), (4 << 20, 1), (PAGE, 4 << 20), (0, 1 << 63)):
        with pytest.raises(Refused, match="of a file of 0x400000 bytes") as caught:
            Mapping(os.dup(memory), offset=offset, length=length)
        assert caught.value.errno == EINVAL


def test_mapping_of_something_else_is_refused() -> None:
    """Neither a file nor a device."""
    reader, writer = os.pipe()
    for fd in (reader, writer, os.open("/", os.O_RDONLY), os.eventfd(0)):
        with pytest.raises(Refused, match="neither a file nor a device"):
            Mapping(fd, offset=0, length=PAGE)


def test_mapping_that_may_not_be_written_is_refused(memory: int) -> None:
    """A read-only descriptor cannot be guest memory."""
    fd = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    with pytest.raises(Refused, match="cannot map") as caught:
        Mapping(fd, offset=0, length=PAGE)
    assert caught.value.errno == EACCES


def test_mapping_larger_than_the_address_space_is_refused() -> None:
    """A sparse file may claim any size."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 62)
    with pytest.raises(Refused, match="cannot map") as caught:
        Mapping(fd, offset=0, length=1 << 62)
    assert caught.value.errno == ENOMEM


def test_mapping_lives_while_held(memory: int) -> None:
    """The table lets go, a dead request holds on; the last release unmaps."""
    ended: list[str] = []
    mapping = Mapping(os.dup(memory), offset=0, length=PAGE)
    mapping.before_unmap(lambda: ended.append("unmapped"))
    mapping.hold()
    mapping.release()
    assert mapping.alive
    assert ended == []
    mapping.release()
    assert not mapping.alive
    assert ended == ["unmapped"]
    for use in (mapping.hold, mapping.release):
        with pytest.raises(ValueError, match="released for good"):
            use()


def test_mapping_outlives_itself_in_a_view(memory: int) -> None:
    """A view somebody kept keeps the memory, down to its last slice."""
    ended: list[str] = []
    mapping = Mapping(os.dup(memory), offset=0, length=PAGE)
    mapping.before_unmap(lambda: ended.append("unmapped"))
    view = mapping.view(0, 100)
    part = view[10:20]
    mapping.release()
    with pytest.raises(ValueError, match="released for good"):
        mapping.view(0, 1)
    view.release()
    part[:] = bytes(10)
    assert ended == []
    part.release()
    del view, part
    assert ended == ["unmapped"]


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, PAGE + 1), (PAGE, 1), (1, -1)])
def test_view_stays_inside(memory: int, offset: int, length: int) -> None:
    """Never a byte of somebody else's."""
    mapping = Mapping(os.dup(memory), offset=0, length=PAGE)
    with pytest.raises(ValueError, match="of a mapping"):
        mapping.view(offset, length)
    mapping.release()


def test_peek_reads_and_allocates_nothing() -> None:
    """A hole reads as zeroes and stays a hole; a load would fill it."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 3 * PAGE)
    os.pwrite(fd, b"here", PAGE + 100)
    mapping = Mapping(os.dup(fd), offset=PAGE, length=2 * PAGE)
    before = os.fstat(fd).st_blocks
    assert mapping.peek(98, 8) == b"\0\0here\0\0"
    assert mapping.peek(PAGE, 16) == bytes(16)
    assert os.fstat(fd).st_blocks == before
    assert ctypes.string_at(mapping.address + PAGE, 16) == bytes(16)
    assert os.fstat(fd).st_blocks > before, "the control"
    mapping.release()
    os.close(fd)


def test_peek_asks_no_file_system() -> None:
    """Only memory is read: FUSE, say, answers when it likes, and all devices would wait."""
    with Path("/dev/zero").open("rb+") as file:
        assert os.pread(file.fileno(), 16, 0) == bytes(16), "the control: it can be read"
        mapping = Mapping(os.dup(file.fileno()), offset=0, length=PAGE)
    assert not mapping.in_memory
    assert mapping.peek(0, 16) is None
    mapping.release()


@pytest.mark.parametrize("kind", [0, os.MFD_HUGETLB])
def test_memory_is_told_from_files(kind: int) -> None:
    """All kinds of memfd, whether they can be sealed or not; no descriptor of anything else."""
    fd = os.memfd_create("guest", kind)
    assert is_in_memory(fd)
    os.close(fd)
    reader, writer = os.pipe()
    assert not is_in_memory(reader)
    os.close(reader)
    os.close(writer)


def test_peek_misses_what_is_gone() -> None:
    """Memory that was cut off is no SIGBUS."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 2 * PAGE)
    mapping = Mapping(fd, offset=0, length=2 * PAGE)
    os.ftruncate(fd, PAGE)
    assert mapping.peek(0, PAGE) == bytes(PAGE)
    assert mapping.peek(PAGE - 8, 16) is None
    assert mapping.peek(PAGE, 16) is None
    mapping.release()
