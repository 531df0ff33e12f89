"""Images on the kinds of place a disk can lie, as fixtures; a conftest imports what it uses."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostblk.disk import kernel

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse file of 4 MiB."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(4 * MIB)
    return path


@pytest.fixture
def direct_image(tmp_path: Path) -> Iterator[Path]:
    """A file of 4 MiB on a file system that says what O_DIRECT wants."""
    for place in (tmp_path, Path("/var/tmp"), Path.cwd()):
        path = place / f"vhostblk-test-{os.getpid()}.img"
        path.write_bytes(bytes(4 * MIB))
        fd = os.open(path, os.O_RDWR)
        try:
            if kernel.direct_alignment(fd) is not None:
                yield path
                return
        except OSError:
            continue
        finally:
            os.close(fd)
            path.unlink()
    pytest.skip("no file system with STATX_DIOALIGN (ext4, xfs; Linux 6.1) under /tmp or /var/tmp")


@pytest.fixture
def tiny_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = shutil.which("mount")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "vhostblk-test", str(place)]
    if mount is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs: needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def loop_device(image: Path) -> Iterator[Path]:
    """A block device over `image`."""
    losetup = shutil.which("losetup")
    if losetup is None:
        pytest.skip("losetup is missing (package mount)")
    made = subprocess.run(
        [losetup, "--find", "--show", str(image)], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"losetup makes no loop device here: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    yield device
    subprocess.run([losetup, "--detach", str(device)], check=True)
