import errno
import os
import subprocess
from pathlib import Path

import pytest

from vhostblk.disk import kernel
from vhostblk.disk.geometry import Geometry, measure, open_image
from vhostblk.disk.kernel import Alignment
from vhostblk.errors import VhostBlkError


def measured(path: Path, *, write: bool = True, direct: bool = False) -> Geometry:
    """Open, measure, close."""
    fd = open_image(str(path), write=write, direct=direct)
    try:
        return measure(fd, str(path), write=write, direct=direct)
    finally:
        os.close(fd)


def refusal(path: Path | str, *, write: bool = True, direct: bool = False) -> str:
    """Return why a path is no disk; one line."""
    with pytest.raises(VhostBlkError) as caught:
        measured(Path(path), write=write, direct=direct)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_has_sectors_and_its_file_systems_blocks(image: Path) -> None:
    """Through the page cache any sector will do; the file system's block is the good size."""
    geometry = measured(image)
    block = image.stat().st_blksize
    assert geometry == Geometry(
        size=4 << 20,
        block_size=512,
        physical_block_size=block,
        optimal_io_size=0,
        discard_alignment=block,
        can_discard=True,
        block_device=False,
        alignment=Alignment(memory=1, offset=1),
    )


def test_a_read_only_file_has_no_discard(image: Path) -> None:
    """What may not be written may not be punched either."""
    assert not measured(image, write=False).can_discard


def test_a_direct_file_has_blocks_that_the_kernel_takes(direct_image: Path) -> None:
    """Every request a driver makes is one that O_DIRECT can do."""
    geometry = measured(direct_image, direct=True)
    assert geometry.block_size == max(512, geometry.alignment.offset)
    assert geometry.alignment.offset > 1


def test_without_a_word_from_the_kernel_a_read_tells(
    direct_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a kernel before 6.1 the smallest direct read that works is the grain."""
    said = measured(direct_image, direct=True).alignment
    monkeypatch.setattr(kernel, "direct_alignment", lambda _fd: None)
    probed = measured(direct_image, direct=True).alignment
    assert probed == Alignment(memory=said.offset, offset=said.offset)


def test_tmpfs_is_direct_or_says_what_to_use(tiny_tmpfs: Path) -> None:
    """A tmpfs has O_DIRECT since Linux 6.6; before that the refusal names the cache mode."""
    path = tiny_tmpfs / "x"
    path.write_bytes(bytes(1 << 16))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        assert "has no O_DIRECT: use --cache writeback" in refusal(path, direct=True)
    else:
        assert measured(path, direct=True).alignment == Alignment(memory=512, offset=512)


def test_no_direct_io_says_what_to_use(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that the kernel knows to have none is refused with a way out."""

    def none(fd: int) -> Alignment:
        del fd
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(kernel, "direct_alignment", none)
    assert "has no O_DIRECT: use --cache writeback" in refusal(image, direct=True)


@pytest.mark.parametrize("size", [1, 511, 513, 1000])
def test_half_a_sector_is_refused_with_the_command_that_helps(image: Path, size: int) -> None:
    """The command in the message makes the file a disk."""
    os.truncate(image, size)
    text = refusal(image)
    assert f"its {size} bytes are not a multiple of its 512-byte blocks" in text
    command = text[text.index("truncate") : text.index(" makes it so")]
    subprocess.run(command, shell=True, check=True)
    assert measured(image).size == -(-size // 512) * 512


def test_a_size_that_only_direct_io_dislikes_has_two_ways_out(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512-byte sectors on a 4096-byte medium: grow the file, or use the page cache."""
    os.truncate(image, 4096 + 512)
    monkeypatch.setattr(kernel, "direct_alignment", lambda _fd: Alignment(memory=4, offset=4096))
    text = refusal(image, direct=True)
    assert "not a multiple of its 4096-byte blocks: truncate -s 8192" in text
    assert text.endswith("or use --cache writeback (file:…,cache=writeback)")


def test_what_is_no_disk_says_why(tmp_path: Path, image: Path) -> None:
    """Each way of not being a disk has its line, with a remedy."""
    assert "no such file: create it, e.g. truncate -s 10G" in refusal(tmp_path / "no thing")
    assert "'" in refusal(tmp_path / "no thing")  # quoted, to be pasted
    assert "write scheme and all: file:" in refusal(tmp_path / "x,cache=none")
    assert "not a regular file or block device" in refusal(tmp_path)
    assert "not a regular file or block device" in refusal("/dev/null")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file or block device" in refusal(tmp_path / "pipe")
    os.truncate(image, 0)
    assert "is empty: give it a size, e.g. truncate -s 10G" in refusal(image)
    image.write_bytes(b"QFI\xfb" + bytes(1000))
    assert "a qcow2 image, and file: serves raw disks: qemu-img convert" in refusal(image)
    assert "cannot be a file's name" in refusal("a\0b")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be opened: Too many levels" in refusal(tmp_path / "loop")


def test_what_cannot_be_written_can_be_served_read_only(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may only read is told how to serve read-only."""

    def denied(path: str, flags: int) -> int:
        del path, flags
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    text = refusal(image)
    assert "cannot be written (Permission denied): add --read-only (file:…,read-only=on)" in text
    assert "read-only=on" not in refusal(image, write=False)


def test_a_loop_device_is_a_disk(loop_device: Path) -> None:
    """A block device is measured by ioctl and discards if its queue does."""
    geometry = measured(loop_device, direct=True)
    assert (geometry.size, geometry.block_size) == (4 << 20, 512)
    assert geometry.block_device
    assert geometry.can_discard
    assert geometry.discard_alignment % 512 == 0


def test_a_read_only_device_says_so(loop_device: Path) -> None:
    """A device that is set read-only opens for writing all the same, and then is asked."""
    subprocess.run(["blockdev", "--setro", str(loop_device)], check=True)
    try:
        assert "the device is read-only: add --read-only" in refusal(loop_device)
        assert measured(loop_device, write=False).size == 4 << 20
    finally:  # the flag would outlive the loop device
        subprocess.run(["blockdev", "--setrw", str(loop_device)], check=True)
