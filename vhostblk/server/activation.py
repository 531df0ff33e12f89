"""
Sockets that systemd opened for us before it started us.

They are descriptors from 3 on, by the names of their socket units (``FileDescriptorName=``).  Who
is started by us must not take them for its own: the variables go, and the descriptors close at
exec.

Source: sd_listen_fds(3).
"""

import fcntl
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass

FIRST = 3
"""SD_LISTEN_FDS_START."""
_VARIABLES = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class Passed:
    """
    A socket that was passed to us.

    Args:
        name: What its unit calls it; ``unknown`` where nobody did.
        fd: The descriptor, not inheritable; whoever adopts it owns it.
    """

    name: str
    fd: int


def expected(environ: Mapping[str, str], pid: int) -> bool:
    """Tell whether sockets were passed to this process; they stay where they are."""
    return environ.get("LISTEN_PID") == str(pid)


def passed_sockets(environ: MutableMapping[str, str], pid: int) -> tuple[Passed, ...]:
    """
    Take over what systemd passed to this process; calling again returns nothing.

    Args:
        environ: The process's; the variables of the protocol are removed.
        pid: The process's: they may be meant for a parent of ours.
    """
    said = {name: environ.pop(name, "") for name in _VARIABLES}
    count = said["LISTEN_FDS"]
    if said["LISTEN_PID"] != str(pid) or not count.isdecimal():
        return ()
    names = said["LISTEN_FDNAMES"].split(":") if said["LISTEN_FDNAMES"] else []
    fds = range(FIRST, FIRST + int(count))
    for fd in fds:
        with suppress(OSError):  # said to be there and is not: whoever adopts it will tell
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    names += ["unknown"] * (len(fds) - len(names))
    return tuple(Passed(name, fd) for name, fd in zip(names, fds, strict=False))
