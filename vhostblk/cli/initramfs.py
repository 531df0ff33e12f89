"""
The guest's first file system, made without any tool: a newc archive in memory.

It holds busybox, the kernel modules a virtio disk needs, a few programs of this machine with
their shared libraries, and an /init that runs one shell script and powers off.  Nothing here
needs root: names, modes and device numbers are only bytes of the archive.

Source of the format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import gzip
import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vhostblk.errors import VhostBlkError

_DIRECTORY = 0o040755
_PROGRAM = 0o100755
_CHARACTER_DEVICE = 0o020600
_CONSOLE = (5, 1)
_PROGRAM_DIRECTORIES = ("/usr/sbin", "/sbin", "/usr/bin", "/bin")


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One file of the archive.

    Args:
        path: Where it is in the guest, without a leading slash.
        mode: Type and permission bits, as stat(2) has them.
        data: The file's bytes; empty for directories and devices.
        device: Major and minor number of a device.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def newc(entries: Iterable[Entry]) -> bytes:
    """
    Write a cpio archive as the kernel reads it.

    Args:
        entries: Files in order; a directory comes before what is in it.

    Returns:
        The archive, uncompressed.
    """
    pieces = [_record(number, entry) for number, entry in enumerate(entries, start=1)]
    pieces.append(_record(0, Entry("TRAILER!!!", 0)))
    return b"".join(pieces)


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links, owner, group, mtime, checksum = 1, 0, 0, 0, 0
    fields = (
        *(inode, entry.mode, owner, group, links, mtime, len(entry.data)),
        *(0, 0, *entry.device, len(name), checksum),
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def module_files(modules: Path, wanted: Sequence[str]) -> list[Path]:
    """
    Find the module files a kernel must load, those they depend on first.

    Reads each module's own list of dependencies: an unpacked kernel package has no modules.dep,
    which depmod makes at installation.

    Args:
        modules: A kernel's module directory, /lib/modules/RELEASE.
        wanted: Module names; those built into the kernel are left out.

    Returns:
        Files in the order of loading.

    Raises:
        VhostBlkError: A module is neither there nor built in.
    """
    files = {_module_name(path): path for path in modules.rglob("*.ko*")}
    built_in = {_module_name(Path(line)) for line in _lines(modules / "modules.builtin")}
    order: dict[str, Path] = {}

    def add(name: str) -> None:
        if name in order or name in built_in:
            return
        if name not in files:
            raise VhostBlkError(f"no kernel module {name} below {modules}")
        for needed in _dependencies(module_data(files[name])):
            add(needed)
        order[name] = files[name]

    for name in wanted:
        add(name)
    return list(order.values())


def module_data(path: Path) -> bytes:
    """
    Read a module file, unpacked.

    Raises:
        VhostBlkError: It is packed in a way that Python cannot unpack.
    """
    data = path.read_bytes()
    match path.suffix:
        case ".ko":
            return data
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case other:
            raise VhostBlkError(f"{path}: cannot unpack {other}; use a kernel with .xz modules")


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _dependencies(module: bytes) -> list[str]:
    """Names in the "depends=" string of a module's .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    names = found[1].decode().split(",") if found else []
    return [name.replace("-", "_") for name in names if name]


def find_program(name: str) -> Path:
    """
    Find a program of this machine, also where only root usually looks.

    Raises:
        VhostBlkError: It is not installed.
    """
    found = shutil.which(name, path=":".join(_PROGRAM_DIRECTORIES))
    if found is None:
        raise VhostBlkError(f"{name} is not installed (Debian: e2fsprogs has mke2fs and e2fsck)")
    return Path(found)


def shared_libraries(program: Path) -> list[Path]:
    """Name the libraries a program is linked with, its loader among them; none if it is static."""
    listing = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing.stdout)]


def build(
    *, busybox: Path, modules: Path, wanted: Sequence[str], programs: Sequence[str], script: str
) -> bytes:
    """
    Make the guest's whole user space.

    Args:
        busybox: A statically linked busybox.
        modules: A kernel's module directory, /lib/modules/RELEASE.
        wanted: Kernel modules to load before the script runs.
        programs: Programs of this machine to take along; they end up in /sbin.
        script: What to run, see :data:`INIT`.

    Returns:
        An initramfs, uncompressed: decompressing takes an emulated CPU longer than copying.

    Raises:
        VhostBlkError: A module, a program or busybox is missing.
    """
    loaded = module_files(modules, wanted)
    files = {f"modules/{_module_name(path)}.ko": module_data(path) for path in loaded}
    insmod = "".join(f"insmod /{path}\n" for path in files)
    files["bin/busybox"] = busybox.read_bytes()
    files["init"] = INIT.replace("@insmod@", insmod).encode()
    files["script"] = script.encode()
    for program in map(find_program, programs):
        files[f"sbin/{program.name}"] = program.read_bytes()
        for library in shared_libraries(program):
            files[str(library).lstrip("/")] = library.read_bytes()
    return newc(_tree(files))


def _tree(files: Mapping[str, bytes]) -> Iterator[Entry]:
    directories = {"proc", "sys", "dev", "mnt", "tmp", "sbin"}
    for path in files:
        directories.update(str(parent) for parent in Path(path).parents if parent.name)
    for path in sorted(directories):
        yield Entry(path, _DIRECTORY)
    yield Entry("dev/console", _CHARACTER_DEVICE, device=_CONSOLE)
    for path, data in files.items():
        yield Entry(path, _PROGRAM, data)


INIT = """\
#!/bin/busybox sh
# The script runs with -e -u and these helpers; how it ended is the last thing said.
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo
echo 1 > /proc/sys/kernel/printk
@insmod@
say() { echo "@@ $*"; }
(
    set -eu
    . /script
)
say exit $?
sync
poweroff -f
"""
"""The guest's /init.  A script says what it saw by ``say NAME VALUE``: a line ``@@ NAME VALUE``."""
