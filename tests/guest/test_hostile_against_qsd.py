"""
The traps of the fake guest are the traps they claim to be.

qemu-storage-daemon hangs up on a driver that breaks the rules and says which one was broken; that
sentence is compared with the name of the case.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from guest_peers.qsd import storage_daemon

from vhostblk.guest import Guest
from vhostblk.guest.hostile import (
    INDIRECT_CASES,
    REQUEST_CASES,
    RING_CASES,
    Case,
    Outcome,
    attempt,
)

CASES = {case.name: case for case in (*RING_CASES, *INDIRECT_CASES, *REQUEST_CASES)}

COMPLAINTS = {
    "head is the ring's size": "Guest says index 256 is available",
    "head is 65535": "Guest says index 65535 is available",
    "next is out of range": "Desc next is 65535",
    "descriptor that follows itself": "Looped descriptor",
    "two descriptors in a loop": "Looped descriptor",
    "status outside RAM": "virtio: invalid address for buffers",
    "loop in an indirect table": "Looped descriptor",
    "next out of an indirect table": "Desc next is 2",
    "indirect table of 0 bytes": "Invalid indirect buffer table",
    "indirect table of 47 bytes": "Invalid size for indirect buffer table",
    "indirect table over the end of RAM": "Invalid indirect buffer table",
    "indirect table outside RAM": "Invalid indirect buffer table",
    "header outside RAM": "virtio: invalid address for buffers",
    "read into a hole": "virtio: invalid address for buffers",
    "read over the end of RAM": "virtio: invalid address for buffers",
    "read over the end of the address space": "virtio: invalid address for buffers",
    "write from a hole": "virtio: invalid address for buffers",
}
"""What the daemon says before it hangs up."""

STATUSES = {
    "read past the end of the disk": Outcome.IOERR,
    "read at the last sector number": Outcome.IOERR,
    "read of 511 bytes": Outcome.IOERR,
    "unknown request type": Outcome.UNSUPP,
}
"""What it answers as it should."""

SWALLOWED = {
    "no writable descriptor": "virtio-blk request missing headers",
    "header of 15 bytes": "virtio-blk request outhdr too short",
}
"""What it complains of and never gives back."""


def run(
    case: Case, directory: Path, connect: Callable[..., Guest], timeout: float = 5.0
) -> Outcome:
    with storage_daemon(directory, 1 << 20) as daemon:
        return attempt(connect(daemon.path).queues[0], case, timeout)


@pytest.mark.parametrize("name", COMPLAINTS)
def test_trap_is_recognized(
    name: str,
    tmp_path: Path,
    vhost_user_guest: Callable[..., Guest],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The daemon finds the fault that the case is named after."""
    assert run(CASES[name], tmp_path, vhost_user_guest) is Outcome.DISCONNECTED
    assert COMPLAINTS[name] in capfd.readouterr().err


@pytest.mark.parametrize("name", STATUSES)
def test_bad_request_is_refused(
    name: str, tmp_path: Path, vhost_user_guest: Callable[..., Guest]
) -> None:
    """A sound chain with a bad request comes back with the status this project expects, too."""
    outcome = run(CASES[name], tmp_path, vhost_user_guest)
    assert outcome is STATUSES[name] is CASES[name].expected


@pytest.mark.parametrize("name", SWALLOWED)
def test_silence_is_told(
    name: str,
    tmp_path: Path,
    vhost_user_guest: Callable[..., Guest],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A chain that never comes back is told as that, within the time given."""
    assert run(CASES[name], tmp_path, vhost_user_guest, timeout=0.1) is Outcome.SILENT
    assert SWALLOWED[name] in capfd.readouterr().err
