"""Image files, looked into without mounting anything."""

import subprocess
from pathlib import Path

from vhostblk.cli import initramfs


def file_in(image: Path, path: str) -> bytes:
    """Return a file of an ext4 image, read by e2fsprogs."""
    debugfs = initramfs.find_program("debugfs")
    command = [str(debugfs), "-R", f"cat {path}", str(image)]
    return subprocess.run(command, capture_output=True, check=True).stdout
