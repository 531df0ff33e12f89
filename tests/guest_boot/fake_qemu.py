"""A "QEMU" whose guest is a few lines of Python: what the harness does, without any boot."""

import sys
from pathlib import Path

from vhostblk.cli.guest_vm import Tools


def make(directory: Path, console: str) -> Tools:
    """
    Make tools whose QEMU runs a Python program on the console.

    Args:
        directory: Where the parts are made.
        console: The program.
    """
    modules = directory / "modules"
    modules.mkdir()
    (modules / "modules.builtin").write_text("virtio_pci.ko\nvirtio_blk.ko\next4.ko\n")
    busybox = directory / "busybox"
    busybox.write_bytes(b"")
    (directory / "console").write_text(console)
    qemu = directory / "qemu"
    qemu.write_text(f"#!/bin/sh\nexec {sys.executable} -u {directory}/console\n")
    qemu.chmod(0o755)
    return Tools(qemu=qemu, kernel=Path("/vmlinuz"), modules=modules, busybox=busybox)
