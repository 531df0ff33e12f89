"""
The exact list of pages that a back-end touches in guest memory, with who only reads and who writes.

The hole map (see ``holes``) needs private pages that are holes.  This needs nothing of the guest,
but the back-end's help: where it maps guest memory it calls ``report``, which has the kernel stop
every first touch of a page and say so to an ``Auditor`` in another process.  That is for a test
build or a start-up program of tests; nobody serves a guest like that.

After its first read and its first write a page is no longer watched, until ``Auditor.forget``.
What is not seen: memory that is touched without being mapped (pread of a memfd), huge pages.
"""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vhostblk.guest import uffd
from vhostblk.guest.errors import DeadlineError, GuestError
from vhostblk.guest.layout import PAGE
from vhostblk.guest.memory import GuestMemory

_FORGET, _DONE = b"forget", b"done"
_LONGEST = 1 << 16
_PRESENT = 1 << 63  # of an entry of /proc/PID/pagemap
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class Touch:
    """
    A page that was touched.

    Args:
        file: What tells the memfd from any other: st_dev, st_ino.
        offset: Of the page in it, in bytes.
        write: It was written.
    """

    file: tuple[int, int]
    offset: int
    write: bool


# ---- in the back-end ------------------------------------------------------------------------


class Report:
    """
    A mapping that is watched; made in the process that has it, before it is used.

    Args:
        path: Where the auditor listens.
        fd: The memfd that is mapped; stays the caller's.
        address: Of the mapping, at a page.
        length: Bytes, whole pages.
        offset: Where the mapping begins in the memfd.

    Raises:
        GuestError: No userfaultfd for this, or no auditor.
    """

    def __init__(
        self, path: str | Path, *, fd: int, address: int, length: int, offset: int
    ) -> None:
        self._address, self._length = address, length
        self._lock = threading.Lock()
        # Pages that mmap itself has brought (MAP_POPULATE) cause no fault any more.
        brought = [offset + at for at in _present(address, length)]
        news = {"address": address, "offset": offset, "brought": len(brought)}
        watch = uffd.make()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            uffd.register(watch, address, length)
            self._zap()
            self._socket.connect(str(path))
            socket.send_fds(self._socket, [json.dumps(news).encode()], [watch, fd])
            self._tell(brought)
        except OSError as error:
            self._socket.close()
            raise GuestError(f"no auditor at {path}: {error.strerror}") from error
        finally:
            os.close(watch)  # the auditor's alone: if it dies, nobody waits for it
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Heed that the mapping goes; just before it does."""
        with self._lock:
            self._length = 0
        with contextlib.suppress(OSError):  # the auditor may have gone first
            self._socket.shutdown(socket.SHUT_RDWR)

    def _tell(self, brought: list[int]) -> None:
        for at in range(0, len(brought), _LONGEST // 8):
            part = brought[at : at + _LONGEST // 8]
            self._socket.send(struct.pack(f"<{len(part)}Q", *part))
        if self._socket.recv(len(_DONE)) != _DONE:
            raise ConnectionResetError(errno.ECONNRESET, "it does not watch")

    def _serve(self) -> None:
        while self._socket.recv(len(_FORGET)) == _FORGET:
            with self._lock:
                self._zap()
            self._socket.send(_DONE)
        self._socket.close()

    def _zap(self) -> None:
        """Take the pages out of the page table: memory that is shared loses nothing by it."""
        if self._length:
            _libc.madvise(self._address, self._length, mmap.MADV_DONTNEED)


def _present(address: int, length: int) -> Iterator[int]:
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(address // PAGE * 8)
        raw = pagemap.read(length // PAGE * 8)
    for number, (entry,) in enumerate(struct.iter_unpack("<Q", raw)):
        if entry & _PRESENT:
            yield number * PAGE


# ---- on the other side ----------------------------------------------------------------------


@dataclass(slots=True)
class _Watched:
    """
    A mapping of a back-end.

    Args:
        connection: To its `Report`.
        watch: Its faults.
        memory: The memfd behind it.
        address: Where it has it.
        offset: Where it begins in the memfd.
        file: What tells the memfd from any other.
    """

    connection: socket.socket
    watch: int
    memory: int
    address: int
    offset: int
    file: tuple[int, int]

    def close(self) -> None:
        self.connection.close()
        os.close(self.watch)
        os.close(self.memory)


class Auditor:
    """
    Lets touches pass and writes them down; use it in a ``with`` statement.

    Args:
        path: Where to listen for reports.
        judge: Asked about every touch while the back-end waits in it, with the memfd: False makes
            it one of `strays`.
        glance: Called between touches, every 2 ms or more often.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        judge: Callable[[Touch, int], bool] = lambda _touch, _memory: True,
        glance: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.touches: list[Touch] = []
        """In order; those before `forget` are not in it."""
        self.strays: list[Touch] = []
        self._judge = judge
        self._glance = glance
        self._watched: dict[int, _Watched] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._run, name="auditor")
        self._lock = threading.Lock()
        self._stop = False
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()
        self._listener.close()
        for watched in self._watched.values():
            watched.close()
        self._selector.close()
        if self._failure is not None:
            raise self._failure

    @property
    def mappings(self) -> int:
        """Return how many mappings are watched."""
        return len(self._watched)

    def touched(self, memory: GuestMemory) -> frozenset[int]:
        """Return the GPAs of the pages that were touched, those of *memory*."""
        return self._pages(memory, {True, False})

    def written(self, memory: GuestMemory) -> frozenset[int]:
        """Return the GPAs of the pages that were written."""
        return self._pages(memory, {True})

    def forget(self, timeout: float = 10.0) -> None:
        """Begin anew with an empty list; see `watch_again`."""
        with self._lock:
            self.touches.clear()
        self.watch_again(timeout)

    def watch_again(self, timeout: float = 10.0) -> None:
        """
        Have every page watched as if it had not been touched.

        Args:
            timeout: Seconds a back-end may take to agree.

        Raises:
            DeadlineError: It does not.
        """
        for watched in tuple(self._watched.values()):
            watched.connection.settimeout(timeout)
            try:
                watched.connection.send(_FORGET)
                watched.connection.recv(len(_DONE))
            except TimeoutError as error:
                raise DeadlineError("the back-end does not watch its memory anew") from error
            except OSError:  # it has unmapped this one
                continue

    def _pages(self, memory: GuestMemory, ways: set[bool]) -> frozenset[int]:
        found = set()
        with self._lock:
            for mapping in memory.mappings:
                file = _identity(mapping.fd)
                span = range(mapping.offset, mapping.offset + mapping.region.size)
                base = mapping.region.gpa - mapping.offset
                found |= {
                    base + touch.offset
                    for touch in self.touches
                    if touch.file == file and touch.offset in span and touch.write in ways
                }
        return frozenset(found)

    def _run(self) -> None:
        try:
            while not self._stop:
                for key, _ in self._selector.select(0.002):
                    key.data()
                self._glance()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            self._failure = error
            for watched in self._watched.values():  # or its back-end waits for ever
                self._selector.unregister(watched.watch)
                os.close(watched.watch)
                watched.watch = os.open(os.devnull, os.O_RDONLY)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(10)
        raw, (watch, memory), _, _ = socket.recv_fds(connection, _LONGEST, 2)
        news = json.loads(raw)
        file = _identity(memory)
        watched = _Watched(connection, watch, memory, news["address"], news["offset"], file)
        self._watched[watched.watch] = watched
        left = news["brought"]
        while left:
            brought = [at for (at,) in struct.iter_unpack("<Q", connection.recv(_LONGEST))]
            left -= len(brought)
            for at in brought:
                self._note(watched, Touch(file, at, write=False))
        self._selector.register(watched.watch, selectors.EVENT_READ, lambda: self._pass(watched))
        connection.send(_DONE)

    def _pass(self, watched: _Watched) -> None:
        for fault in uffd.take(watched.watch):
            offset = watched.offset + fault.address - watched.address
            self._note(watched, Touch(watched.file, offset, fault.write))
            uffd.let_pass(watched.watch, fault, watched.memory, offset)

    def _note(self, watched: _Watched, touch: Touch) -> None:
        with self._lock:
            self.touches.append(touch)
            if not self._judge(touch, watched.memory):
                self.strays.append(touch)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
