"""
libblkio's vhost-user-blk driver as a client: an implementation nobody here wrote.

ctypes over the C API of libblkio 1.x; one queue, one request at a time.
"""

import ctypes
import os
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from types import TracebackType
from typing import Self

REQ_FUA, REQ_NO_UNMAP = 1, 2
_BUFFER = 1 << 20


class _Region(ctypes.Structure):
    _fields_ = (
        ("addr", c_void_p),
        ("len", c_size_t),
        ("iova", c_uint64),
        ("fd_offset", ctypes.c_int64),
        ("fd", c_int),
        ("flags", c_uint32),
    )


class _Completion(ctypes.Structure):
    _fields_ = (
        ("user_data", c_void_p),
        ("error_msg", c_char_p),
        ("ret", c_int),
        ("reserved", ctypes.c_ubyte * 12),
    )


def library() -> ctypes.CDLL:
    """
    Load libblkio.

    Raises:
        RuntimeError: It is not where ``make test`` unpacks it.
    """
    prefix = Path(os.environ.get("VHOSTBLK_BLKIO", "/usr"))
    found = next(prefix.glob("lib/*/libblkio.so.1"), None)
    if found is None:
        raise RuntimeError("libblkio is missing; `.ci/setup all` unpacks it (VHOSTBLK_BLKIO)")
    lib = ctypes.CDLL(str(found))
    lib.blkio_get_error_msg.restype = c_char_p
    lib.blkio_get_queue.restype = c_void_p
    lib.blkio_destroy.restype = None
    for name in ("read", "write"):
        function = getattr(lib, f"blkioq_{name}")
        function.restype = None
        function.argtypes = (c_void_p, c_uint64, c_void_p, c_size_t, c_void_p, c_uint32)
    for name in ("discard", "write_zeroes"):
        function = getattr(lib, f"blkioq_{name}")
        function.restype = None
        function.argtypes = (c_void_p, c_uint64, c_uint64, c_void_p, c_uint32)
    lib.blkioq_flush.restype = None
    lib.blkioq_flush.argtypes = (c_void_p, c_void_p, c_uint32)
    lib.blkioq_do_io.argtypes = (c_void_p, POINTER(_Completion), c_int, c_int, c_void_p)
    return lib


class Blkio:
    """
    A started connection to a vhost-user-blk socket.

    Args:
        path: The socket.
        read_only: Do not ask to write.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._lib = library()
        self._handle = c_void_p()
        self._check(self._lib.blkio_create(b"virtio-blk-vhost-user", byref(self._handle)))
        try:
            self._start(path, read_only=read_only)
        except OSError:
            self.close()
            raise

    def _start(self, path: Path, *, read_only: bool) -> None:
        self._check(self._lib.blkio_set_str(self._handle, b"path", str(path).encode()))
        if read_only:
            self._check(self._lib.blkio_set_bool(self._handle, b"read-only", c_bool(read_only)))
        self._check(self._lib.blkio_connect(self._handle))
        self._check(self._lib.blkio_start(self._handle))
        self._region = _Region()
        self._check(
            self._lib.blkio_alloc_mem_region(self._handle, byref(self._region), c_size_t(_BUFFER))
        )
        self._check(self._lib.blkio_map_mem_region(self._handle, byref(self._region)))
        self._queue = c_void_p(self._lib.blkio_get_queue(self._handle, 0))

    def close(self) -> None:
        """End the connection."""
        self._lib.blkio_destroy(byref(self._handle))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check(self, result: int) -> None:
        if result < 0:
            raise OSError(-result, (self._lib.blkio_get_error_msg() or b"").decode())

    def _wait(self) -> None:
        done = _Completion()
        n = self._lib.blkioq_do_io(self._queue, byref(done), 1, 1, None)
        self._check(n)
        if done.ret < 0:
            raise OSError(-done.ret, os.strerror(-done.ret))

    def read(self, offset: int, length: int) -> bytes:
        """Return *length* bytes from byte *offset* on."""
        self._lib.blkioq_read(self._queue, offset, self._region.addr, length, None, 0)
        self._wait()
        return ctypes.string_at(self._region.addr, length)

    def write(self, offset: int, data: bytes, *, flags: int = 0) -> None:
        """Write *data* from byte *offset* on."""
        ctypes.memmove(self._region.addr, data, len(data))
        self._lib.blkioq_write(self._queue, offset, self._region.addr, len(data), None, flags)
        self._wait()

    def flush(self) -> None:
        """Make what was written stable."""
        self._lib.blkioq_flush(self._queue, None, 0)
        self._wait()

    def discard(self, offset: int, length: int) -> None:
        """Forget a range."""
        self._lib.blkioq_discard(self._queue, offset, length, None, 0)
        self._wait()

    def write_zeroes(self, offset: int, length: int, *, flags: int = 0) -> None:
        """Make a range read as zeroes."""
        self._lib.blkioq_write_zeroes(self._queue, offset, length, None, flags)
        self._wait()

    def get_bool(self, name: str) -> bool:
        """Return a property."""
        value = c_bool()
        self._check(self._lib.blkio_get_bool(self._handle, name.encode(), byref(value)))
        return value.value

    def get_int(self, name: str) -> int:
        """Return a property of C type int."""
        value = c_int()
        self._check(self._lib.blkio_get_int(self._handle, name.encode(), byref(value)))
        return value.value

    def get_uint64(self, name: str) -> int:
        """Return a property of C type uint64_t."""
        value = c_uint64()
        self._check(self._lib.blkio_get_uint64(self._handle, name.encode(), byref(value)))
        return value.value
