"""
Cutting the byte stream into messages.

A descriptor travels with the bytes it was sent with, and only reads of exactly `want` bytes keep
it with its message: a larger read once returned the bytes of three sends together with the
descriptor of the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vhostblk.errors import ProtocolError
from vhostblk.protocol import wire
from vhostblk.protocol.fd import Fd
from vhostblk.spec.vhost_user import (
    FLAG_REPLY,
    FLAG_VERSION_MASK,
    HEADER_SIZE,
    MAX_FDS,
    MAX_PAYLOAD,
    VERSION,
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One whole message, not looked into yet."""

    number: int
    flags: int
    payload: bytes
    fds: tuple[Fd, ...]


class Framer:
    """
    Puts messages together from the bytes and descriptors that arrive.

    Args:
        flags: What the REPLY flag must be: 0 for requests, FLAG_REPLY for replies.
    """

    __slots__ = ("_data", "_fds", "_flags", "_header")

    def __init__(self, *, flags: int) -> None:
        self._flags = flags
        self._header: tuple[int, int, int] | None = None
        self._data = bytearray()
        self._fds: list[Fd] = []

    @property
    def want(self) -> int:
        """How many bytes to read next, at most; never 0."""
        length = HEADER_SIZE if self._header is None else self._header[2]
        return length - len(self._data)

    @property
    def idle(self) -> bool:
        """Whether the stream stands between two messages."""
        return self._header is None and not self._data

    @property
    def partial(self) -> tuple[bytes, tuple[int, ...]]:
        """Return what has come of the next message; its descriptors stay here."""
        head = b"" if self._header is None else wire.HEADER.pack(*self._header)
        return head + self._data, tuple(fd.fileno() for fd in self._fds)

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> Frame | None:
        """
        Take what one read returned.

        Args:
            data: Up to *want* bytes.
            fds: Descriptors of that read; owned here from now on.

        Returns:
            The message these bytes complete, or None.

        Raises:
            ProtocolError: This is no message, or it brings too many descriptors.
        """
        self._fds.extend(Fd(number) for number in fds)
        if len(data) > self.want:
            self.close()
            raise ValueError(f"read {len(data)} bytes where {self.want} were wanted")
        if len(self._fds) > MAX_FDS:
            raise self._failure(f"a message brings more than {MAX_FDS} file descriptors")
        self._data += data
        if self.want == 0 and self._header is None:
            self._start()
        return None if self.want else self._finish()

    def go_on(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """
        Begin within a message, as another process has left it.

        Args:
            data: As `partial` returned it.
            fds: The same descriptors; owned here from now on.

        Raises:
            ProtocolError: That is no part of a message.
        """
        owned: Sequence[int] = fds
        while data or owned:
            here, data = data[: self.want], data[self.want :]
            if self.feed(here, owned) is not None:
                raise self._failure("a message came whole where a part of one was due")
            owned = ()

    def _start(self) -> None:
        number, flags, size = wire.HEADER.unpack(bytes(self._data))
        if flags & FLAG_VERSION_MASK != VERSION or flags & FLAG_REPLY != self._flags:
            raise self._failure(f"message {number} has flags {flags:#x}")
        if size > MAX_PAYLOAD:
            raise self._failure(f"message {number} claims a payload of {size} bytes")
        self._header = number, flags, size
        self._data.clear()

    def _finish(self) -> Frame:
        if self._header is None:
            raise AssertionError("finished before the header came")
        number, flags, _ = self._header
        frame = Frame(number, flags, bytes(self._data), tuple(self._fds))
        self._header = None
        self._data.clear()
        self._fds.clear()
        return frame

    def _failure(self, reason: str) -> ProtocolError:
        self.close()
        return ProtocolError(reason)

    def close(self) -> None:
        """Forget a message that came in part, and close its descriptors."""
        for fd in self._fds:
            fd.close()
        self._header = None
        self._fds.clear()
        self._data.clear()


def encode(number: int, flags: int, payload: bytes = b"") -> bytes:
    """Return the bytes of one message."""
    return wire.HEADER.pack(number, flags | VERSION, len(payload)) + payload
