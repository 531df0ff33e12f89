"""
Telling a service manager how we are.

Source: sd_notify(3).
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


def notify(*lines: str, environ: Mapping[str, str] = os.environ) -> None:
    """
    Send ``READY=1`` and the like, if anybody asked to be told; who does not listen is let be.

    Args:
        lines: Assignments, see sd_notify(3).
        environ: NOTIFY_SOCKET says where; with ``@`` in front a name without a file.
    """
    where = environ.get("NOTIFY_SOCKET", "")
    if where[:1] not in {"/", "@"}:
        return
    address = "\0" + where[1:] if where[0] == "@" else where
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(lines).encode(), address)


def reloading() -> tuple[str, str]:
    """Return what says that we are about to change; READY=1 says that it is done."""
    return "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
