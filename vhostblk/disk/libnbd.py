"""
What libnbd does, as far as `nbd` needs it: its C functions, and its errors as exceptions.

The library is loaded when the first handle is made; nothing else needs it.  Each function is what
its manual page says, e.g. ``nbd_aio_pread(3)``.
"""

import ctypes
import errno
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from functools import cache

from vhostblk.errors import VhostBlkError

# <libnbd.h>
SIZE_MINIMUM, SIZE_PREFERRED, SIZE_MAXIMUM = 0, 1, 2
FLAG_FUA = 1
FLAG_NO_HOLE = 2
READ, WRITE = 1, 2

LIBRARY = "libnbd.so.0"
"""Its name in all of its versions so far."""

_POLL_MS = 50


class _Completion(ctypes.Structure):
    """``nbd_completion_callback``; all zero: nobody is called, the command is asked about."""

    _fields_ = (("callback", c_void_p), ("user_data", c_void_p), ("free", c_void_p))


NOBODY = _Completion()

_FUNCTIONS = {
    "create": (c_void_p,),
    "close": (None, c_void_p),
    "get_error": (c_char_p,),
    "get_errno": (c_int,),
    "set_export_name": (c_int, c_void_p, c_char_p),
    "set_pread_initialize": (c_int, c_void_p, c_bool),
    "set_uri_allow_local_file": (c_int, c_void_p, c_bool),
    "aio_connect_uri": (c_int, c_void_p, c_char_p),
    "aio_connect_unix": (c_int, c_void_p, c_char_p),
    "aio_connect_systemd_socket_activation": (c_int, c_void_p, ctypes.POINTER(c_char_p)),
    "kill_subprocess": (c_int, c_void_p, c_int),
    "aio_connect_tcp": (c_int, c_void_p, c_char_p, c_char_p),
    "aio_is_ready": (c_int, c_void_p),
    "aio_is_dead": (c_int, c_void_p),
    "aio_is_closed": (c_int, c_void_p),
    "aio_get_fd": (c_int, c_void_p),
    "aio_get_direction": (c_uint, c_void_p),
    "aio_notify_read": (c_int, c_void_p),
    "aio_notify_write": (c_int, c_void_p),
    "aio_peek_command_completed": (c_int64, c_void_p),
    "aio_command_completed": (c_int, c_void_p, c_uint64),
    "poll": (c_int, c_void_p, c_int),
    "get_size": (c_int64, c_void_p),
    "get_block_size": (c_int64, c_void_p, c_int),
    "is_read_only": (c_int, c_void_p),
    "can_flush": (c_int, c_void_p),
    "can_fua": (c_int, c_void_p),
    "can_trim": (c_int, c_void_p),
    "can_zero": (c_int, c_void_p),
    "aio_pread": (c_int64, c_void_p, c_void_p, c_size_t, c_uint64, _Completion, c_uint32),
    "aio_pwrite": (c_int64, c_void_p, c_void_p, c_size_t, c_uint64, _Completion, c_uint32),
    "aio_flush": (c_int64, c_void_p, _Completion, c_uint32),
    "aio_trim": (c_int64, c_void_p, c_uint64, c_uint64, _Completion, c_uint32),
    "aio_zero": (c_int64, c_void_p, c_uint64, c_uint64, _Completion, c_uint32),
}
"""By name without ``nbd_``: what each returns, then what it takes."""


class Handle:
    """
    A connection to a server, or what is to become one.  One thread at a time.

    Raises:
        VhostBlkError: The library is not there.
    """

    def __init__(self) -> None:
        self._library = _load(LIBRARY)
        self._handle = self._library.nbd_create()
        if not self._handle:
            raise self._error()
        self._has_child = False
        # We look at an error before we look at a buffer.
        self.switch("set_pread_initialize", on=False)

    def call(self, name: str, *args: object) -> int:
        """
        Call ``nbd_NAME`` with this handle in front of *args*.

        Raises:
            OSError: It has returned -1: the library's errno and message.
        """
        result = int(getattr(self._library, f"nbd_{name}")(self._handle, *args))
        if result == -1:
            raise self._error()
        return result

    def switch(self, name: str, *, on: bool) -> None:
        """Call a function that takes nothing but whether."""
        self.call(name, on)

    @property
    def is_gone(self) -> bool:
        """Whether it is no connection any more, and will not be one again."""
        return bool(self.call("aio_is_dead") or self.call("aio_is_closed"))

    def wait_until_ready(self, seconds: float, called_off: Callable[[], bool]) -> None:
        """
        Go on with a connection that was begun, until it is one.

        Raises:
            OSError: It cannot be made, or not in time.
        """
        until = time.monotonic() + seconds
        while not self.call("aio_is_ready"):
            if self.is_gone:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "the server hung up")
            if called_off() or time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, f"no answer within {seconds:g} s")
            self.call("poll", _POLL_MS)

    def start(self, command: Sequence[bytes]) -> None:
        """
        Begin a connection to a server that is started for it; it ends with the connection.

        Raises:
            OSError: It cannot be started.
        """
        words = (c_char_p * (len(command) + 1))(*command, None)
        self.call("aio_connect_systemd_socket_activation", words)
        self._has_child = True

    def give_up(self) -> None:
        """End what has not become a connection, and the server that was started for it."""
        if self._has_child:
            with suppress(OSError):  # it has ended by itself
                self.call("kill_subprocess", signal.SIGKILL)
        self.close()

    def completed(self) -> int:
        """Return the number of a command that is over, 0 where none is."""
        return max(0, int(self._library.nbd_aio_peek_command_completed(self._handle)))

    def close(self) -> None:
        """
        End it; what is under way is forgotten, and its buffers are no more used.

        Waits for the end of a server that was started for it.
        """
        self._library.nbd_close(self._handle)
        self._handle = None

    def _error(self) -> OSError:
        text = self._library.nbd_get_error() or b"no reason given"
        return OSError(int(self._library.nbd_get_errno()) or errno.EIO, text.decode())


@cache
def _load(name: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(name)
    except OSError:
        raise VhostBlkError(f"nbd needs the library {name}: apt install libnbd0") from None
    for function_name, (result, *arguments) in _FUNCTIONS.items():
        function = getattr(library, f"nbd_{function_name}")
        function.restype, function.argtypes = result, arguments
    return library
