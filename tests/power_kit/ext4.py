"""
A guest that makes files on ext4 and syncs some, and what of them must be there after a power cut.

The guest marks in the recording how far it is: by reading a page that nothing else reads.
"""

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from vhostblk.cli import initramfs
from vhostblk.sweep.checker import Said
from vhostblk.trace.format import Op
from vhostblk.trace.reader import Segment
from vhostblk.trace.records import Submitted

MIB = 1 << 20
SIZE = 32 * MIB
PAGE = 4096
MARKS = 7500
"""The first page that is read to mark something, far behind what is written."""
FILES = 10
READY = 0
"""The mark behind formatting and mounting."""

SUPERBLOCK = (1024, 2048)
"""Where it is; ext4 counts on its being written as a whole, so 512 bytes are too small a grain."""


def mounted(options: str = "rw") -> str:
    """Format the disk and mount it."""
    return f"/sbin/mke2fs -q -t ext4 /dev/vda\nmount -t ext4 -o {options} /dev/vda /mnt\n"


WRITE = f"""\
mark() {{
    dd if=/dev/vda of=/dev/null bs={PAGE} count=1 skip=$(({MARKS} + $1)) iflag=direct 2>/dev/null
}}
mark {READY}
for file in $(seq 1 {FILES}); do
    yes "this is file $file" | head -c $((file * 3000)) > /tmp/text
    cp /tmp/text /mnt/noise$file
    mkdir /mnt/dir$file
    dd if=/tmp/text of=/mnt/dir$file/file bs=4k conv=fsync 2>/dev/null
    mark $file
    say synced $file
    rm -f /mnt/noise$((file - 2))
done
"""
"""Each file is synced before the next is begun, and two more are not."""


def content(number: int) -> bytes:
    """Return what the guest writes to a file."""
    line = f"this is file {number}\n".encode()
    return (line * (number * 3000 // len(line) + 1))[: number * 3000]


def marks(segment: Segment) -> Iterator[tuple[int, int]]:
    """Yield the number of the request that is a mark, and the mark."""
    submissions = (step for step in segment.steps() if isinstance(step, Submitted))
    for number, step in enumerate(submissions, start=1):
        mark = step.offset // PAGE - MARKS
        if step.op is Op.READ and step.length == PAGE and 0 <= mark <= FILES:
            yield number, mark


def damage(image: Path, synced: int) -> str | None:
    """
    Say what is wrong with a file system after a power cut; None: nothing.

    Args:
        image: Repaired on the way, as a guest does at its next mount.
        synced: The last file that must be there.
    """
    e2fsck = str(initramfs.find_program("e2fsck"))
    replay = subprocess.run([e2fsck, "-p", image], capture_output=True, text=True, check=False)
    if replay.returncode not in {0, 1}:
        return f"e2fsck -p: {replay.returncode}\n{replay.stdout}{replay.stderr}"
    full = subprocess.run([e2fsck, "-fn", image], capture_output=True, text=True, check=False)
    if full.returncode:
        return f"e2fsck -fn: {full.returncode}\n{full.stdout}{full.stderr}"
    debugfs = str(initramfs.find_program("debugfs"))
    for number in range(1, synced + 1):
        words = [debugfs, "-R", f"cat /dir{number}/file", str(image)]
        found = subprocess.run(words, capture_output=True, check=True).stdout
        if found != content(number):
            return f"file {number} was synced and has {len(found)} bytes, or others"
    return None


class Judge:
    """
    Checks states of a recording.

    Args:
        marks: Of the recording, see `marks`.
    """

    def __init__(self, marks: Mapping[int, int]) -> None:
        self._marks = marks

    def run(self, image: Path, environ: Mapping[str, str]) -> Said:
        """Judge one."""
        at = int(environ["VHOSTBLK_REQUEST"])
        synced = max((mark for request, mark in self._marks.items() if request <= at), default=0)
        wrong = damage(image, synced)
        return Said(good=wrong is None, how="was done", output=wrong or "")

    def stop(self) -> None:
        """What runs ends soon."""
