import lzma
from pathlib import Path

import pytest

from vhostblk.cli import initramfs
from vhostblk.cli.initramfs import Entry
from vhostblk.errors import VhostBlkError


def module(depends: str) -> bytes:
    """Return what a module file has of interest: its .modinfo strings."""
    return b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """Return a kernel's module directory: c needs b-b and a, b-b needs a; d is built in."""
    drivers = tmp_path / "kernel" / "drivers"
    drivers.mkdir(parents=True)
    (drivers / "c.ko").write_bytes(module("a,b-b"))
    (drivers / "b-b.ko").write_bytes(module("a"))
    (drivers / "a.ko.xz").write_bytes(lzma.compress(module("")))
    (tmp_path / "modules.builtin").write_text("kernel/fs/d.ko\n")
    return tmp_path


def test_newc_writes_the_bytes_the_kernel_reads() -> None:
    """
    Header fields are eight hex digits each, names and data are padded to four bytes.

    Spec: Linux, early-userspace/buffer-format.rst.
    """
    archive = initramfs.newc([Entry("ab", 0o100755, b"hello", device=(5, 1))])

    header = b"070701" + b"00000001" + b"000081ED" + b"00000000" * 2 + b"00000001" + b"00000000"
    header += b"00000005" + b"00000000" * 2 + b"00000005" + b"00000001" + b"00000003" + b"00000000"
    assert archive[:110] == header
    assert archive[110:124] == b"ab\0" + b"\0\0\0" + b"hello" + b"\0\0\0"
    assert archive[124:130] == b"070701"
    assert archive.endswith(b"TRAILER!!!\0\0\0\0")
    assert len(archive) % 4 == 0


def test_module_files_puts_dependencies_first(modules: Path) -> None:
    """A module comes after all it depends on, once, whatever hyphens its name is spelt with."""
    found = initramfs.module_files(modules, ["c", "b_b"])

    assert [path.name for path in found] == ["a.ko.xz", "b-b.ko", "c.ko"]


def test_module_files_leaves_out_what_is_built_in(modules: Path) -> None:
    """A driver that the kernel contains needs no file."""
    assert initramfs.module_files(modules, ["d"]) == []


def test_module_files_names_a_missing_module(modules: Path) -> None:
    """A kernel without the driver is refused by the driver's name, before any boot."""
    with pytest.raises(VhostBlkError, match="no kernel module nosuch"):
        initramfs.module_files(modules, ["nosuch"])


def test_module_data_unpacks_xz(modules: Path) -> None:
    """The guest gets plain modules: its busybox need not know how they were packed."""
    packed = modules / "kernel" / "drivers" / "a.ko.xz"

    assert initramfs.module_data(packed) == module("")


def test_module_data_refuses_what_it_cannot_unpack(tmp_path: Path) -> None:
    """Python cannot unpack zstd: say so instead of shipping a useless file."""
    packed = tmp_path / "a.ko.zst"
    packed.write_bytes(b"")

    with pytest.raises(VhostBlkError, match=r"cannot unpack \.zst"):
        initramfs.module_data(packed)


def test_find_program_names_what_is_missing() -> None:
    """A program that is not installed is an error that names it."""
    with pytest.raises(VhostBlkError, match="no-such-program is not installed"):
        initramfs.find_program("no-such-program")


def test_build_takes_programs_with_their_libraries(modules: Path, tmp_path: Path) -> None:
    """A dynamic program travels with every library, its loader included, each where it was."""
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"BUSYBOX")
    archive = initramfs.build(
        busybox=busybox, modules=modules, wanted=["c"], programs=["mke2fs"], script="say hello"
    )

    libraries = initramfs.shared_libraries(initramfs.find_program("mke2fs"))
    assert any("libc.so" in path.name for path in libraries)
    for library in libraries:
        assert str(library).lstrip("/").encode() + b"\0" in archive
        assert library.read_bytes() in archive
    assert b"insmod /modules/a.ko\ninsmod /modules/b_b.ko\ninsmod /modules/c.ko\n" in archive
    assert b"say hello" in archive
