"""
Keys in memory, and where they come from.

A key is never a ``bytes`` of Python's, which could be neither wiped nor kept out of a core dump:
it is read into memory of its own, which is locked, left out of dumps, and wiped when it is closed.
"""

import ctypes
import errno
import mmap
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from vhostblk.disk.numbers import parse_number
from vhostblk.errors import VhostBlkError

MAX_KEY = 8192
"""Bytes of a key or passphrase at most."""

# Numbers of request_key and keyctl: <asm/unistd_64.h>, <asm-generic/unistd.h>.
_SYSTEM_CALLS: Mapping[str, tuple[int, int]] = {"x86_64": (249, 250), "aarch64": (218, 219)}
_KEYCTL_READ = 11  # <linux/keyctl.h>

_libc = ctypes.CDLL(None, use_errno=True)


class Secret:
    """
    Bytes that no swap and no core dump gets; a context manager, which wipes them.

    Args:
        room: How many there may be.

    Raises:
        VhostBlkError: The memory cannot be locked.
    """

    def __init__(self, room: int) -> None:
        self._memory = mmap.mmap(-1, room)
        self._view = memoryview(self._memory)
        self.length = 0
        with suppress(OSError):  # a kernel without it has no core dumps either
            self._memory.madvise(mmap.MADV_DONTDUMP)
        start = ctypes.c_char.from_buffer(self._memory)
        if _libc.mlock(ctypes.byref(start), ctypes.c_size_t(room)) != 0:
            code = ctypes.get_errno()
            del start
            self.close()
            raise VhostBlkError(
                f"the key's memory cannot be locked ({os.strerror(code)}): raise the limit of "
                "locked memory (ulimit -l, LimitMEMLOCK=)"
            )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wipe it."""
        self.close()

    def view(self) -> memoryview:
        """Return the bytes there are; to be released before `close`."""
        return self._view[: self.length]

    def room(self) -> memoryview:
        """Return all that may be written, before `length` is set; to be released, likewise."""
        return self._view[:]

    def fill(self, fd: int) -> None:
        """
        Add what is read from *fd* to its end, or as much as there is room for.

        Raises:
            OSError: As the system call.
        """
        while self.length < len(self._view):
            with self._view[self.length :] as rest:
                n = os.readv(fd, [rest])
            if not n:
                return
            self.length += n

    def close(self) -> None:
        """Wipe it, and let the memory go; again does nothing."""
        if not self._memory.closed:
            self._view[:] = bytes(len(self._view))
            self._view.release()
            self._memory.close()


@dataclass(frozen=True, slots=True)
class KeySource:
    """
    Where a key comes from; the key itself is in no option.

    Args:
        kind: One of `KINDS`.
        text: Of the option.
    """

    kind: str
    text: str

    def read(self) -> Secret:
        """
        Return the key, which is the caller's to close.

        Raises:
            VhostBlkError: There is none, or none that can be one.
        """
        secret = Secret(MAX_KEY + 1)
        try:
            _READERS[self.kind](secret, self.text)
            self._check(secret)
        except OSError as error:
            secret.close()
            raise VhostBlkError(f"{self}: {error.strerror}") from error
        except BaseException:
            secret.close()
            raise
        return secret

    def _check(self, secret: Secret) -> None:
        if not secret.length:
            raise VhostBlkError(f"{self}: the key is empty")
        if secret.length > MAX_KEY:
            raise VhostBlkError(f"{self}: the key is longer than {MAX_KEY} bytes")

    def __str__(self) -> str:
        """Return the option as it was written."""
        return f"{self.kind}={self.text}"


def parse_source(options: Mapping[str, str]) -> KeySource:
    """
    Read which source options name; others among them are not looked at.

    Raises:
        VhostBlkError: None, or several; or a file descriptor that is no number.
    """
    said = [KeySource(kind, options[kind]) for kind in KINDS if kind in options]
    if len(said) != 1:
        some = ", ".join(f"{kind}=" for kind in KINDS)
        raise VhostBlkError(f"where the key is: write one of {some}")
    if said[0].kind == "key-fd":
        parse_number(said[0].text, "key-fd")
    return said[0]


# ---- sources ------------------------------------------------------------------------------------


def _of_file(secret: Secret, path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        secret.fill(fd)
    finally:
        os.close(fd)


def _of_fd(secret: Secret, text: str) -> None:
    secret.fill(int(text))


def _of_command(secret: Secret, command: str) -> None:
    """Read what a command prints, without the end of its last line, as a shell's $(…) does."""
    with subprocess.Popen(  # noqa: S603 - the user's own, who asked for it
        ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        secret.fill(process.stdout.fileno())
    if process.returncode:
        how = f"status {process.returncode}"
        if process.returncode < 0:
            how = f"signal {-process.returncode}"
        raise VhostBlkError(f"key-command={command}: it ended with {how}")
    with secret.view() as view:
        ended = bool(view) and view[-1] == ord("\n")
    secret.length -= ended


def _of_keyring(secret: Secret, description: str) -> None:
    """Read a key of type "user" from the kernel's keyrings: of thread, process and session."""
    machine = os.uname().machine
    if machine not in _SYSTEM_CALLS:
        raise VhostBlkError(f"keyring={description}: not known how to ask on {machine}")
    request_key, keyctl = _SYSTEM_CALLS[machine]
    key = _libc.syscall(request_key, b"user", os.fsencode(description), None, ctypes.c_long(0))
    if key < 0:
        code = ctypes.get_errno()
        if code == errno.ENOKEY:
            raise VhostBlkError(
                f"keyring={description}: no key of that name and of type user in this process's "
                "keyrings: add it with keyctl padd user NAME @u, or link that keyring"
            )
        raise OSError(code, os.strerror(code))
    with secret.room() as room:
        start = ctypes.c_char.from_buffer(room)
        length = ctypes.c_size_t(len(room))
        n = _libc.syscall(keyctl, _KEYCTL_READ, ctypes.c_int(key), ctypes.byref(start), length)
        code = ctypes.get_errno()
        del start
    if n < 0:
        raise OSError(code, os.strerror(code))
    secret.length = min(n, MAX_KEY + 1)


_READERS = {
    "key-file": _of_file,
    "key-fd": _of_fd,
    "key-command": _of_command,
    "keyring": _of_keyring,
}
KINDS = tuple(_READERS)
"""The options, of which one names a source."""
