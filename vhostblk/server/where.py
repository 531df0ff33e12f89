"""Where one disk is served: what was asked for, what systemd passed, and the source made of it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vhostblk.errors import VhostBlkError
from vhostblk.server.activation import Passed
from vhostblk.server.connector import connect
from vhostblk.server.listener import SocketOptions, adopt, listen
from vhostblk.server.log import Log
from vhostblk.server.source import Source

TAKEN_OVER = "(taken over)"
"""Stands for the name of the one device of another process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """
    One of several ways to meet front-ends.

    Args:
        name: What log lines call a device that is served there and that nobody named.
        listen_on: A socket path of ours.
        connect_to: A socket path of the front-end's.
        fd: A socket that somebody opened, listening or connected.
        systemd: Name of a socket that systemd has passed.
    """

    name: str
    listen_on: Path | None = None
    connect_to: Path | None = None
    fd: int | None = None
    systemd: str | None = None

    def open(self, options: SocketOptions, name: str, passed: Sequence[Passed] = ()) -> Source:
        """
        Listen, or get ready to connect.

        Args:
            options: Who may connect to a socket path of ours.
            name: Of the device.
            passed: By systemd.

        Raises:
            VhostBlkError: It cannot be had; one line that says what to do.
        """
        if self.systemd is not None:
            return adopt(_passed(self.systemd, passed))
        if self.connect_to is not None:
            return connect(self.connect_to, Log(__name__, name))
        if self.listen_on is not None:
            return listen(self.listen_on, options)
        return adopt(-1 if self.fd is None else self.fd)


def _passed(name: str, passed: Sequence[Passed]) -> int:
    for one in passed:
        if one.name == name:
            return one.fd
    names = ", ".join(one.name for one in passed) or "none"
    raise VhostBlkError(f"systemd has passed no socket {name!r} (but {names}): enable its unit")


def where(
    socket_path: str | os.PathLike[str] | None,
    connect_to: str | os.PathLike[str] | None,
    fd: int | None,
    passed: Sequence[Passed],
    *,
    taking_over: bool = False,
) -> Where:
    """
    Say where one disk is served.

    Args:
        socket_path: As asked for, or None.
        connect_to: As asked for, or None.
        fd: As asked for, or None.
        passed: By systemd; what counts if nothing was asked for.
        taking_over: Another process knows better.

    Raises:
        VhostBlkError: Nothing or too much was said.
    """
    asked = [one for one in (socket_path, connect_to, fd) if one is not None]
    if taking_over and not asked:
        return Where(name=TAKEN_OVER)
    if len(asked) > 1 or not (asked or passed):
        raise VhostBlkError(
            "say where to serve: a socket path, a path to connect to, or the fd of a socket"
        )
    names = ", ".join(one.name for one in passed)
    if asked and passed:
        raise VhostBlkError(
            f"systemd has passed a socket ({names}), and another place to serve was given: leave "
            "one of them out"
        )
    if len(passed) > 1:
        raise VhostBlkError(f"systemd has passed {len(passed)} sockets ({names}): one disk has one")
    if socket_path is not None:
        path = Path(socket_path)
        return Where(name=path.name, listen_on=path)
    if connect_to is not None:
        path = Path(connect_to)
        return Where(name=path.name, connect_to=path)
    if fd is not None:
        return Where(name=f"fd {fd}", fd=fd)
    return Where(name=passed[0].name, fd=passed[0].fd)
