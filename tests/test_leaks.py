"""
Guest data stays where it belongs: in no log, no core dump, not in our memory, nowhere in the image.

Two texts that occur nowhere else are followed: one that the guest keeps to itself, in pages no
descriptor names, and one that it writes to its disk.
"""

import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import running
from places import direct_image
from proc import mapped
from server_kit.serving import until

from vhostblk.guest import Framing, Guest, GuestMemory, Range, Region, Request
from vhostblk.guest.hostile import INDIRECT_CASES, REQUEST_CASES, RING_CASES, Outcome, attempt
from vhostblk.guest.layout import MIB
from vhostblk.spec.virtio_blk import Status

__all__ = ["direct_image"]

Connect = Callable[..., Guest]
PRIVATE = b"Pr!vate+Canary/gu3st-keeps-th1s."
PAYLOAD = b"P@yload#Canary/d1sk-stores-th1s?"
SIZE = 4 * MIB
MARK = "VHOSTBLK_TEST_MARK=this-is-in-every-core-dump-of-ours"
UNALIGNED = Framing(readable=(16, 1000, 3001), writable=(999, 3002))
CASES = (*RING_CASES, *INDIRECT_CASES, *REQUEST_CASES)
SLOW = pytest.mark.slow
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")


def leaks(data: bytes) -> list[bytes]:
    """Return which of the two texts are in there, as they are, as digits, or a part of them."""
    needles = [text[at : at + 12] for text in (PRIVATE, PAYLOAD) for at in (0, 8, 20)]
    needles += [needle.hex().encode() for needle in needles]
    return [needle for needle in needles if needle in data]


@pytest.fixture(params=["native", "reference"])
def engine(request: pytest.FixtureRequest) -> str:
    """Return the name of a data plane."""
    name: str = request.param
    return name


@pytest.fixture(params=["none", pytest.param("writeback", marks=SLOW)])
def disk(request: pytest.FixtureRequest, direct_image: Path) -> str:
    """Return a disk in a file, with our bounce memory (``none``) or without."""
    return f"file:{direct_image},cache={request.param}"


MEMORY = f"memory:{SIZE}"


class Served:
    """
    A server that logs everything, which somebody has to read all the time.

    Args:
        process: Its.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self._lines.extend(self.process.stderr)  # one by one

    def end(self, sig: signal.Signals = signal.SIGTERM) -> str:
        """End it, as it should end; return its log."""
        self.process.send_signal(sig)
        assert self.process.wait(60) == (0 if sig == signal.SIGTERM else -sig)
        self._reader.join()
        return "".join(self._lines)

    def wait_for(self, word: str) -> None:
        """Wait until it logs *word*."""
        assert until(lambda: any(word in line for line in self._lines))

    def kill(self) -> None:
        """End it anyhow."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def serving(directory: Path, *words: str, program: str = "") -> Iterator[Served]:
    """Run a server that leaves a core dump in *directory* when it is aborted."""
    socket = directory / "s"
    start = (running.ROOT / "tests" / program,) if program else ("-m", "vhostblk")
    name, _, value = MARK.partition("=")
    options = ("serve", "-vv", "--num-queues", "2", "--socket-path", socket)
    process = running.start(*start, *options, *words, cwd=directory, environ={name: value})
    served = Served(process)
    try:
        running.wait_for_socket(socket, process)
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (-1, -1))
        yield served
    finally:
        served.kill()


@contextmanager
def guest_of(directory: Path, connect: Connect) -> Iterator[Guest]:
    """Connect a bounced guest that keeps something to itself, in plain memory."""
    with GuestMemory([Region(0, 16 * MIB)]) as memory:
        guest = connect(directory / "s", memory=memory, queues=2, confidential="bounced")
        memory.write(memory.allocate(65536, align=4096), PRIVATE * 2048)
        yield guest
        guest.close()


def load(guest: Guest, image: bytearray) -> None:
    """Write and read in any framing; *image* gets what is written."""
    for sector, length, framing in ((0, 512, None), (8, 4096, UNALIGNED), (128, 65536, None)):
        data = PAYLOAD * (length // 32)
        guest.write(sector, data, framing=framing)
        image[sector * 512 : sector * 512 + length] = data
        assert guest.read(sector, length, framing=framing) == data
    guest.flush()
    guest.discard([Range(0, 1)])
    guest.write_zeroes([Range(136, 8)])
    image[:512] = bytes(512)
    image[136 * 512 : 144 * 512] = bytes(4096)


def abuse(guest: Guest) -> None:
    """Do all that a driver must not."""
    for request in (
        Request.write(1 << 40, PAYLOAD * 16),
        Request.read(1 << 40, 512),
        Request(type=77, sector=0, out=PAYLOAD * 16, in_length=0),
        Request(type=1, sector=0, out=PAYLOAD, in_length=0),
    ):
        assert guest.run(request).status in {Status.IOERR, Status.UNSUPP}
    for case in CASES:
        if attempt(guest.queues[1], case) is Outcome.BROKEN:
            guest.reboot()


def test_no_log_line_has_guest_data(
    engine: str, disk: str, direct_image: Path, tmp_path: Path, vhost_user_guest: Connect
) -> None:
    """Requests that work and fail, rings of all kinds, a disk that was cut short, at -vv."""
    with serving(tmp_path, "--engine", engine, disk) as process:
        with guest_of(tmp_path, vhost_user_guest) as guest:
            load(guest, bytearray(SIZE))
            abuse(guest)
            os.truncate(direct_image, 69632)  # in the middle of what was written
            for sector, framing in ((128, None), (128, UNALIGNED), (136, None)):
                completion = guest.run(Request.read(sector, 8192), framing=framing)
                assert completion.status == Status.IOERR
        log = process.end()
    assert leaks(log.encode()) == []
    for sign in ("SET_VRING_ADDR", "is broken", "I/O error"):
        assert sign in log


def test_nothing_stays_in_our_memory(
    engine: str, disk: str, tmp_path: Path, vhost_user_guest: Connect
) -> None:
    """When the guest is gone, no byte of what passed through is left in the whole process."""
    with serving(tmp_path, "--engine", engine, disk) as process:
        with guest_of(tmp_path, vhost_user_guest) as guest:
            load(guest, bytearray(SIZE))
        vhost_user_guest(tmp_path / "s").close()  # the server lets go of it by and by
        assert until(lambda: leaks(memory_of(process.pid)) == [])


def test_our_memory_can_be_searched(tmp_path: Path, vhost_user_guest: Connect) -> None:
    """A disk that is our memory holds what was written: the negative control of the above."""
    with serving(tmp_path, MEMORY) as process:
        with guest_of(tmp_path, vhost_user_guest) as guest:
            load(guest, bytearray(SIZE))
        vhost_user_guest(tmp_path / "s").close()  # the first was let go of
        found = leaks(memory_of(process.pid))
        assert PAYLOAD[:12] in found
        assert PRIVATE[:12] not in found


def test_the_image_holds_what_was_written_only(
    engine: str, disk: str, direct_image: Path, tmp_path: Path, vhost_user_guest: Connect
) -> None:
    """Byte by byte, after requests that work and such that fail."""
    image = bytearray(SIZE)
    with (
        serving(tmp_path, "--engine", engine, disk),
        guest_of(tmp_path, vhost_user_guest) as guest,
    ):
        load(guest, image)
        abuse(guest)
        guest.flush()
        stored = direct_image.read_bytes()
    # One hostile case is a valid request in an odd shape; it writes zeroes or noise of its own.
    assert stored[512:] == image[512:]
    assert leaks(stored[:512]) == []


@pytest.mark.parametrize(
    ("program", "in_memory"),
    [
        ("", False),
        pytest.param("", True, marks=SLOW),
        pytest.param("dumped.py", False, marks=SLOW),
    ],
)
def test_a_core_dump_has_no_guest_data(  # noqa: PLR0913, PLR0917 - pytest names them
    engine: str,
    disk: str,
    tmp_path: Path,
    vhost_user_guest: Connect,
    program: str,
    in_memory: bool,  # noqa: FBT001 - by name
) -> None:
    """
    While the guest is connected: neither its memory nor its disk, nor what passed through.

    Of the latter the last bytes would be in the processor's registers, which a dump has, too.

    With MADV_DONTDUMP taken out of the mapping (dumped.py) both texts are found.
    """
    words = ("--engine", engine, MEMORY if in_memory else disk)
    with (
        serving(tmp_path, *words, program=program) as process,
        guest_of(tmp_path, vhost_user_guest) as guest,
    ):
        load(guest, bytearray(SIZE))
        process.end(signal.SIGABRT)
    data = core_in(tmp_path)
    if program:
        assert {PRIVATE[:12], PAYLOAD[:12]} <= set(leaks(data))
    else:
        assert leaks(data) == []


@pytest.mark.parametrize("program", ["stalled.py", pytest.param("stalled_dumped.py", marks=SLOW)])
def test_a_core_dump_in_the_middle_of_a_transfer(
    program: str, direct_image: Path, tmp_path: Path, vhost_user_guest: Connect
) -> None:
    """
    With a write in our bounce memory, which is then full of guest data, nothing of it is dumped.

    Where bounce memory lacks MADV_DONTDUMP (stalled_dumped.py) it is.
    """
    words = ("--engine", "reference", f"file:{direct_image},cache=none")
    with (
        serving(tmp_path, *words, program=program) as process,
        guest_of(tmp_path, vhost_user_guest) as guest,
    ):
        guest.submit(Request.write(0, PAYLOAD * 128))
        process.wait_for("stalled")
        process.end(signal.SIGABRT)
    data = core_in(tmp_path)
    assert (PAYLOAD[:12] in leaks(data)) == (program == "stalled_dumped.py")


def core_in(directory: Path) -> bytes:
    """Return the core dump that was left there; skips the test where dumps go elsewhere."""
    pattern = CORE_PATTERN.read_text().strip()
    if "/" in pattern or "|" in pattern or "%" in pattern:
        pytest.skip(f"core dumps go to {pattern!r}: needs a plain name in {CORE_PATTERN}")
    (core,) = directory.glob(f"{pattern}*")
    data = core.read_bytes()
    core.unlink()
    assert MARK.encode() in data, "it is whole"
    return data


def memory_of(pid: int) -> bytes:
    """Return all that a process has in memory it can write, or had written."""
    parts = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for one in mapped(pid):
            if "wr" in one.flags and one.fields["Rss"] != "0 kB":
                memory.seek(one.start)
                with suppress(OSError):  # of devices: io_uring, vvar
                    parts.append(memory.read(one.end - one.start))
    return b"".join(parts)
