"""Where an NBD server is: what somebody wrote, and the beginning of a connection to it."""

import errno
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from vhostblk.disk.libnbd import Handle
from vhostblk.errors import VhostBlkError

PORT = 10809
"""Of NBD servers, by IANA."""

FORM = "nbd:unix:PATH[,export=NAME], nbd:HOST[:PORT][,export=NAME] or nbd://…"
START = "start"
"""A server of our own, by systemd's socket activation."""
_TCP = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:\[\]/]+))(?::([0-9]{1,5}))?")
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Where:
    """
    A server and one of its exports.

    Args:
        text: As it was written, for messages.
        how: The function of libnbd that connects; or `START`.
        to: What that is given; or the command.
        export: Its name; None: it is in the URI.
        file: What has to be there before a server is started.
        hint: What to do where the program is missing.
    """

    text: str
    how: str
    to: tuple[str, ...]
    export: str | None
    file: str | None = None
    hint: str = ""

    def connect(self, seconds: float, called_off: Event) -> Handle:
        """
        Connect, on a thread that may wait.

        Raises:
            OSError: It cannot be done, or not in time.
            VhostBlkError: The library is not there.
        """
        handle = Handle()
        try:
            # What the URI names, as certificates, the user has named.
            handle.switch("set_uri_allow_local_file", on=True)
            if self.export is not None:
                handle.call("set_export_name", self.export.encode())
            if self.how == START:
                handle.start([os.fsencode(word) for word in self._command()])
            else:
                handle.call(self.how, *(word.encode() for word in self.to))
            handle.wait_until_ready(seconds, called_off.is_set)
        except BaseException:
            handle.give_up()
            raise
        return handle

    def _command(self) -> list[str]:
        """Return how to start the server, out of reach of a terminal's ^C: we end it ourselves."""
        if shutil.which(self.to[0]) is None:
            raise FileNotFoundError(errno.ENOENT, f"there is no program {self.to[0]}{self.hint}")
        if self.file is not None and not Path(self.file).is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file")
        return ["setsid", *self.to]


def where(scheme: str, body: str, options: Mapping[str, str]) -> Where:
    """
    Read where a server is.

    Args:
        scheme: ``nbd``, or another that only URIs have.
        body: What stands behind it.
        options: ``export`` is looked at.

    Raises:
        VhostBlkError: That is nowhere; what to write.
    """
    text, export = f"{scheme}:{body}", options.get("export")
    if scheme != "nbd" or body.startswith("//"):
        if export is not None:
            raise VhostBlkError(f"{text}: a URI has the export's name in it: leave out export=")
        if not body.startswith("//"):
            raise VhostBlkError(f"{text}: not a URI: write {scheme}://…")
        return Where(text, "aio_connect_uri", (text,), None)
    if body.startswith("unix:"):
        if not body[5:]:
            raise VhostBlkError(f"{text}: no path: write {FORM}")
        return Where(text, "aio_connect_unix", (body[5:],), export or "")
    match = _TCP.fullmatch(body)
    if match is None or not 0 < int(match[3] or PORT) <= _MAX_PORT:
        raise VhostBlkError(f"{text}: no server is named so: write {FORM}")
    return Where(
        text, "aio_connect_tcp", (match[1] or match[2], match[3] or str(PORT)), export or ""
    )


def started(scheme: str, body: str, options: Mapping[str, str]) -> Where:
    """
    Read the command of a server that is to be started: ``nbd+exec:COMMAND``.

    Raises:
        VhostBlkError: It is none.
    """
    text = f"{scheme}:{body}"
    try:
        command = shlex.split(body)
    except ValueError as error:
        raise VhostBlkError(f"{text}: not a command as a shell has it: {error}") from None
    if not command:
        raise VhostBlkError(f"{text}: no command: write {scheme}:COMMAND")
    return Where(text, START, tuple(command), options.get("export", ""))


def qcow2(path: str, *, read_only: bool) -> Where:
    """Return the server of an image: qemu-nbd, which ends with the disk."""
    # Absolute: QEMU takes a word and a colon for a protocol.
    file = str(Path(path).absolute())
    rights = ("--read-only",) if read_only else ()
    command = ("qemu-nbd", "--format=qcow2", "--discard=unmap", *rights, file)
    return Where(f"qcow2:{path}", START, command, "", file=file, hint=": apt install qemu-utils")
