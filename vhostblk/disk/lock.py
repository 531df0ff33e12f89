"""
QEMU's image lock, so that two programs never write one image without knowing of each other.

QEMU says what a user of an image does, and what it lets others do, by locking single bytes of the
file itself, with locks that belong to the open file (OFD).  Byte 100+n shared: "I use permission
n"; byte 200+n shared: "nobody else may use n".  All these locks are shared ones and never
conflict; a conflict is found by *testing*, after one's own bytes are locked, whether somebody else
holds the opposite byte.  QEMU, qemu-img, qemu-storage-daemon and we all play by this rule.

Sources: QEMU's ``block/file-posix.c`` (bytes 100 and 200) and ``include/block/block-common.h``
(the permissions).  A device reads consistently, writes unless it is read-only, and lets nobody
else write: what QEMU's own virtio-blk does.
"""

import errno
import fcntl
import logging
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

from vhostblk.errors import VhostBlkError

log = logging.getLogger(__name__)


class Permission(IntEnum):
    """What can be done with an image; the numbers are bits and byte offsets in QEMU."""

    CONSISTENT_READ = 0
    WRITE = 1
    WRITE_UNCHANGED = 2
    RESIZE = 3


USED_BASE = 100
DENIED_BASE = 200

FLOCK = struct.Struct("hhqqi4x")
"""struct flock: type, whence, start, len, pid."""

# A file system that has no such locks says one of these.
_UNABLE = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

ORPHAN_SECONDS = 30.0
"""How long a lock is waited for that no living process has: of one that was killed it lives until
the last of its I/O has returned.  Slow drives take seconds for what they have queued; a service
manager gives a start 90 s."""
SAY_SECONDS = 1.0
"""When an operator is told what is waited for."""
_LOOK_SECONDS = 0.02
_LOOK_LATER_SECONDS = 0.2
_SIGKILL = 1 << 8
"""In the masks of /proc/<pid>/status."""

_TAKEN = frozenset({errno.EACCES, errno.EAGAIN})


class LockUnavailableError(VhostBlkError):
    """The file system has no such locks."""


class InUseError(VhostBlkError):
    """
    Somebody uses the image.

    Args:
        text: What, who, and what to do.
        living: It is a process that goes on using it.
    """

    def __init__(self, text: str, *, living: bool) -> None:
        super().__init__(text)
        self.living = living


def acquire(  # noqa: PLR0913 - two callers, which name them
    fd: int,
    path: str,
    *,
    write: bool,
    alone: bool = True,
    seconds: float = 0,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    """
    Lock an image as a device does; the lock lasts until the last copy of *fd* is closed.

    Args:
        fd: The open file that is going to be served.
        path: Its name, for errors.
        write: The device writes.
        alone: Look for others; False: this process has the same locks on another open file of it
            and gives those up for these.
        seconds: How long to wait for the lock of a process that is not there any more.
        pause: Waits that long, in between; returns True when the whole is to be given up.

    Raises:
        InUseError: Somebody uses it in a way that does not go with that; says who if it can.
        LockUnavailableError: Cannot be told on this file system.
        OSError: The kernel refuses for a reason that has nothing to do with others.
    """
    since, said = time.monotonic(), False
    while True:
        try:
            _acquire(fd, path, write=write, alone=alone)
        except InUseError as error:
            waited = time.monotonic() - since
            if error.living or waited >= seconds:
                raise
            if waited >= SAY_SECONDS and not said:
                log.warning(
                    "%s: it is locked, and no living process is seen to have it: of one that was "
                    "killed the last I/O may be under way, which is waited for, up to %g s",
                    path,
                    seconds,
                )
                said = True
            if pause(_LOOK_LATER_SECONDS if said else _LOOK_SECONDS):
                raise
        else:
            return


def _acquire(fd: int, path: str, *, write: bool, alone: bool) -> None:
    used = [Permission.CONSISTENT_READ, *([Permission.WRITE] if write else [])]
    denied = [Permission.WRITE]
    mine = [USED_BASE + p for p in used] + [DENIED_BASE + p for p in denied]
    # Writers first: where one both writes and lets nobody else, that it writes says more.
    opposite = [USED_BASE + p for p in denied] + [DENIED_BASE + p for p in used]
    try:
        for byte in mine:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))
        # Only now: of two that come at the same time, each has locked before it looks.
        looked_at = opposite if alone else ()
        conflict = next((byte for byte in looked_at if held_by_others(fd, byte)), None)
    except OSError as error:
        if error.errno in _UNABLE:
            raise LockUnavailableError(
                f"{path}: its file system cannot lock ({error.strerror}): "
                "add locking=off if nothing else uses the image"
            ) from error
        if error.errno not in _TAKEN:
            raise
        raise _in_use(fd, path, None, mine[0], write=write) from error
    if conflict is not None:
        release(fd)
        raise _in_use(fd, path, conflict, conflict, write=write)


def _in_use(fd: int, path: str, byte: int | None, held: int, *, write: bool) -> InUseError:
    """Say who holds the byte *held*, which is why *byte* (None: all of them) cannot be had."""
    pid = _holder(fd, held)
    text = _complaint(path, byte, None if pid is None else _named(pid), write=write)
    return InUseError(text, living=pid is not None and not _is_dying(pid))


def release(fd: int) -> None:
    """Give every byte back."""
    for base in (USED_BASE, DENIED_BASE):
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, 0, base, len(Permission), 0))


def has(fd: int) -> bool:
    """Say whether an open file of this process has been locked, here or by who has passed it."""
    try:
        return _locks(Path(f"/proc/self/fdinfo/{fd}").read_text(), DENIED_BASE + Permission.WRITE)
    except OSError:  # without /proc nobody can tell
        return False


def held_by_others(fd: int, byte: int) -> bool:
    """Say whether another open file has locked *byte*; asks as a writer would, locks nothing."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    kind: int = FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _complaint(path: str, byte: int | None, holder: str | None, *, write: bool) -> str:
    """Put a conflict in one line: what, who, and what to do."""
    who = holder or "another process"
    match byte:
        case None:
            does, remedy = "has it locked as a whole", "stop that first"
        case _ if byte == USED_BASE + Permission.WRITE:
            does, remedy = "writes to it", "stop that first, or serve a copy"
        case _ if byte == DENIED_BASE + Permission.WRITE and write:
            does = "lets nobody else write"
            remedy = "stop that first, or serve it with read-only=on"
        case _:
            does, remedy = "lets nobody else read", "stop that first, or serve a copy"
    return (
        f"{path}: in use: {who} {does}: {remedy} (locking=off takes the risk of a destroyed image)"
    )


def _named(pid: int) -> str:
    """Return what a person calls a process."""
    if pid == os.getpid():
        return f"this process itself (pid {pid})"
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    except OSError:
        return f"pid {pid}"


def _is_dying(pid: int) -> bool:
    """Whether a process has been killed and only waits for its last I/O."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    status = dict(line.split(":", 1) for line in lines)
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return bool(pending & _SIGKILL) or status["State"].split()[0] in {"Z", "X"}


def _holder(fd: int, byte: int) -> int | None:
    """Find who holds *byte*: OFD locks have no pid, but each open file shows its own in fdinfo."""
    me = os.fstat(fd)
    for entry in _open_files(me.st_dev, me.st_ino):
        pid, number = entry.parts[2], entry.name
        if (int(pid), int(number)) == (os.getpid(), fd):
            continue
        with suppress(OSError):
            if _locks(Path(f"/proc/{pid}/fdinfo/{number}").read_text(), byte):
                return int(pid)
    return None


def _open_files(device: int, inode: int) -> Iterator[Path]:
    """Yield ``/proc/<pid>/fd/<n>`` of every open file of an inode that we may see."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for entry in (process / "fd").iterdir():
                with suppress(OSError):
                    stat = entry.stat()
                    if (stat.st_dev, stat.st_ino) == (device, inode):
                        yield entry


def _locks(fdinfo: str, byte: int) -> bool:
    """Say whether the text of an fdinfo file shows an OFD lock over *byte*."""
    for line in fdinfo.splitlines():
        words = line.split()
        if words[:1] == ["lock:"] and "OFDLCK" in words:
            first, last = words[-2:]
            if int(first) <= byte and (last == "EOF" or byte <= int(last)):
                return True
    return False
