import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vhostblk.disk import kernel
from vhostblk.disk.kernel import Alignment, DiscardLimits

_NAMES = {
    "BLKROGET": kernel.BLKROGET,
    "BLKSSZGET": kernel.BLKSSZGET,
    "BLKDISCARD": kernel.BLKDISCARD,
    "BLKIOOPT": kernel.BLKIOOPT,
    "BLKPBSZGET": kernel.BLKPBSZGET,
    "BLKGETSIZE64": kernel.BLKGETSIZE64,
    "FALLOC_FL_KEEP_SIZE": kernel.KEEP_SIZE,
    "FALLOC_FL_PUNCH_HOLE": kernel.PUNCH_HOLE,
    "FALLOC_FL_ZERO_RANGE": kernel.ZERO_RANGE,
    "STATX_DIOALIGN": kernel._STATX_DIOALIGN,
    "sizeof(struct statx)": kernel._STATX_BYTES,
    "offsetof(struct statx, stx_dio_mem_align)": kernel._STATX_DIO_AT,
}


def test_the_numbers_are_the_kernels(tmp_path: Path) -> None:
    """Every number equals what this machine's kernel headers say."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (package gcc)")
    source = "#include <stddef.h>\n#include <linux/fs.h>\n#include <linux/falloc.h>\n"
    source += "#include <linux/stat.h>\n"
    names = dict(_NAMES)
    if "STATX_DIOALIGN" not in Path("/usr/include/linux/stat.h").read_text():
        names = {name: value for name, value in names.items() if "dio" not in name.lower()}
    for name, value in names.items():
        source += f'_Static_assert(({name}) == {value}, "{name}");\n'
    check = tmp_path / "check.c"
    check.write_text(source)
    command = [compiler, "-fsyntax-only", str(check)]
    assert subprocess.run(command, check=False, capture_output=True, text=True).stderr == ""


def test_a_punched_hole_reads_as_zeroes_and_costs_nothing(image: Path) -> None:
    """`fallocate` with PUNCH_HOLE frees blocks and keeps the size."""
    image.write_bytes(b"x" * (1 << 20))
    fd = os.open(image, os.O_RDWR)
    try:
        os.fsync(fd)
        before = os.fstat(fd)
        kernel.fallocate(fd, kernel.PUNCH_HOLE | kernel.KEEP_SIZE, 65536, 65536)
        after = os.fstat(fd)
    finally:
        os.close(fd)
    assert after.st_size == before.st_size
    assert before.st_blocks - after.st_blocks == 65536 // 512
    assert image.read_bytes()[65536:131072] == bytes(65536)


def test_a_failed_fallocate_is_an_os_error(image: Path) -> None:
    """The errno of the system call comes through."""
    fd = os.open(image, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            kernel.fallocate(fd, 0, 0, 4096)
    finally:
        os.close(fd)
    assert caught.value.errno == errno.EBADF


def test_the_kernel_says_what_o_direct_wants(direct_image: Path) -> None:
    """The alignment is a power of two up to a page, and a transfer of that grain works."""
    fd = os.open(direct_image, os.O_RDWR | os.O_DIRECT)
    try:
        alignment = kernel.direct_alignment(fd)
    finally:
        os.close(fd)
    assert isinstance(alignment, Alignment)
    for number in (alignment.memory, alignment.offset):
        assert number & (number - 1) == 0
        assert 1 <= number <= 65536


def test_a_device_without_direct_io_says_so() -> None:
    """What the kernel knows to have no alignment has no direct I/O, or it does not say."""
    fd = os.open("/proc/self/stat", os.O_RDONLY)
    try:
        assert kernel.direct_alignment(fd) is None
    finally:
        os.close(fd)


def test_discard_limits_come_from_sysfs(tmp_path: Path) -> None:
    """A device has a queue, a partition its disk's queue, and an unknown device no discard."""
    queue = tmp_path / "7:0" / "queue"
    queue.mkdir(parents=True)
    (queue / "discard_granularity").write_text("4096\n")
    (queue / "discard_max_bytes").write_text("1048576\n")
    found = DiscardLimits(granularity=4096, longest=1 << 20)
    assert kernel.discard_limits(os.makedev(7, 0), tmp_path) == found
    (tmp_path / "7:0" / "7p1").mkdir()
    (tmp_path / "259:1").symlink_to(tmp_path / "7:0" / "7p1")
    assert kernel.discard_limits(os.makedev(259, 1), tmp_path) == found
    nothing = DiscardLimits(granularity=0, longest=0)
    assert kernel.discard_limits(os.makedev(1, 1), tmp_path) == nothing


def test_a_loop_device_is_measured(loop_device: Path) -> None:
    """Size, sector size and read-only flag of a real block device."""
    fd = os.open(loop_device, os.O_RDWR)
    try:
        assert kernel.device_size(fd) == 4 << 20
        assert kernel.get_u32(fd, kernel.BLKSSZGET) == 512
        assert kernel.get_u32(fd, kernel.BLKROGET) == 0
        assert kernel.discard_limits(os.fstat(fd).st_rdev).longest > 0
    finally:
        os.close(fd)
