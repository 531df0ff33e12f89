"""Where an NBD server is: what somebody wrote, and the beginning of a connection to it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event

from vhostblk.disk.libnbd import Handle
from vhostblk.errors import VhostBlkError

PORT = 10809
"""Of NBD servers, by IANA."""

FORM = "nbd:unix:PATH[,export=NAME], nbd:HOST[:PORT][,export=NAME] or nbd://…"
_TCP = re.compile(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:\[\]/]+))(?::([0-9]{1,5}))?")
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Where:
    """
    A server and one of its exports.

    Args:
        text: As it was written, for messages.
        how: The function of libnbd that connects.
        to: What that is given.
        export: Its name; None: it is in the URI.
    """

    text: str
    how: str
    to: tuple[str, ...]
    export: str | None

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
            handle.call(self.how, *(word.encode() for word in self.to))
            handle.wait_until_ready(seconds, called_off.is_set)
        except BaseException:
            handle.close()
            raise
        return handle


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
