"""From what was typed to the disk that is meant."""

from vhostblk.disk.api import Disk
from vhostblk.disk.grammar import DiskSpec
from vhostblk.disk.make import make
from vhostblk.errors import VhostBlkError


def make_disk(spec: DiskSpec, *, cache: str | None, read_only: bool) -> Disk:
    """
    Make a disk with what was said beside it, in options of the command.

    Args:
        spec: The disk.
        cache: A file's cache mode; None: as *spec* says.
        read_only: Open a file so, which lets readers share its lock.  For other disks the device
            refuses writes.

    Raises:
        VhostBlkError: No such disk, an option it does not have, or two answers to one question.
    """
    if cache is not None:
        if spec.scheme != "file":
            raise VhostBlkError(f"--cache is for files: a {spec.scheme}: disk has no host cache")
        spec = spec.with_option("cache", cache)
    if read_only and spec.scheme == "file":
        spec = spec.with_option("read-only", "on")
    return make(spec)
