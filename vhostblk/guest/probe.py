"""Why no guest can use a back-end, said in one line before any test runs."""

import stat
import time
from pathlib import Path

from vhostblk.guest.errors import DeadlineError, DisconnectedError, GuestError
from vhostblk.guest.guest import Guest

SECONDS = 5.0
"""What a back-end may take for each answer."""
LEAVE_SECONDS = 1.0
"""What a front-end that has left may still seem to be there."""
_CONNECTED = "03"


def find_fault(path: Path, *, timeout: float = SECONDS) -> str | None:
    """
    Look whether a back-end can be used: connect, negotiate, read its config space, hang up.

    Args:
        path: Its socket.
        timeout: Seconds for each answer.

    Returns:
        What is wrong and what to do; ``None``: nothing.
    """
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return f"{path} is no socket"
    except OSError as error:
        return f"{path}: {error.strerror}: start the back-end first, or give another path"
    if _stays_in_use(path):
        return f"{path} is in use: a back-end has one front-end at a time; end the other one first"
    return _try(path, timeout)


def _stays_in_use(path: Path) -> bool:
    """Tell whether a front-end is there that does not go: a back-end hangs up a moment later."""
    end = time.monotonic() + LEAVE_SECONDS
    while has_front_end(path):
        if time.monotonic() > end:
            return True
        time.sleep(0.01)
    return False


def _try(path: Path, timeout: float) -> str | None:
    try:
        with Guest.connect(path, start=False, timeout=timeout) as guest:
            guest.config()
    except DeadlineError as error:
        return (
            f"{path} takes the connection and does not answer ({error}): it serves another "
            "front-end, or is no vhost-user back-end"
        )
    except DisconnectedError as error:
        return f"{path} cannot be used: {error}: does a vhost-user-blk back-end listen there?"
    except GuestError as error:
        return f"{path} is no vhost-user-blk back-end that can be tested: {error}"
    return None


def has_front_end(path: Path) -> bool:
    """
    Tell whether somebody is connected to a socket that was bound as *path*.

    Source: Linux, net/unix/af_unix.c, unix_seq_show: state 3 is that of a connected socket, and
    one that was accepted has the name of the listening one.
    """
    try:
        lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    except OSError:
        return False
    rows = (line.split(maxsplit=7) for line in lines)
    return any(len(row) > 7 and row[5] == _CONNECTED and row[7] == str(path) for row in rows)  # noqa: PLR2004 - as many columns
