"""Disks that the core serves without Python."""

from typing import Any, cast

from vhostblk.disk.api import (
    FileIo,
    NativeDisk,
    NativeFile,
    NativeMemory,
    NativeNull,
    NativeSpec,
)
from vhostblk.engine.api import Way, Ways
from vhostblk.engine.native.core import check, ffi, lib, make


class Bottom:
    """
    A disk of the core.  Made by `Bottom.of`.

    Args:
        spec: What it is.
    """

    def __init__(self, spec: NativeSpec) -> None:
        self.disk = _native_disk(spec)
        self._is_file = isinstance(spec, NativeFile)
        self.moves = isinstance(spec, NativeMemory)
        """Whether it may be elsewhere behind a resize."""

    @staticmethod
    def of(disk: object) -> "Bottom | None":
        """Make the one of an open disk; None: that is served in Python."""
        if not hasattr(disk, "native"):
            return None
        return Bottom(cast("NativeDisk", disk).native())

    def ways(self) -> Ways | None:
        """Return which way reads and writes of a file take; None: it is none."""
        if not self._is_file:
            return None
        now = ffi.new("struct vhb_file_ways *")
        check(lib.vhb_disk_file_ways(self.disk, now), "disk")
        return Ways(
            reads=_way(now.reads),
            writes=_way(now.writes),
            reads_open=now.reads_open,
            writes_open=now.writes_open,
        )

    def free(self) -> None:
        """Let go of it; no queue and no layer uses it any more."""
        check(lib.vhb_disk_free(self.disk), "disk")


def _io_flag(io: FileIo) -> int:
    flags = {FileIo.RING: lib.VHB_FILE_RING, FileIo.INLINE: lib.VHB_FILE_INLINE}
    return int(flags.get(io, 0))


def _way(kind: int) -> Way:
    return {
        lib.VHB_WAY_RING: Way.RING,
        lib.VHB_WAY_PLAIN: Way.PLAIN,
        lib.VHB_WAY_NOWAIT: Way.NOWAIT,
        lib.VHB_WAY_TIMED: Way.TIMED,
    }[kind]


def _native_disk(spec: NativeSpec) -> Any:
    """Make the C disk of it."""
    match spec:
        case NativeFile():
            flags = (
                (lib.VHB_FILE_DIRECT if spec.direct else 0)
                | (lib.VHB_FILE_BLOCK_DEVICE if spec.block_device else 0)
                | _io_flag(spec.io)
            )
            aligns = spec.mem_align, spec.offset_align
            return make("disk", lib.vhb_disk_file_new, spec.fd, flags, *aligns)
        case NativeMemory():
            host = ffi.cast("void *", spec.address)
            return make("disk", lib.vhb_disk_memory_new, host, spec.size)
        case NativeNull():
            return make("disk", lib.vhb_disk_null_new, spec.zero)
