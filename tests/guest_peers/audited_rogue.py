"""
The rogue in a process of its own, its touches watched: SOCKET AUDITOR MISDEED.

Serves one front-end at SOCKET, then the next, until it is killed.
"""

import ctypes
import mmap
import socket
import sys

from guest_peers.misdeeds import MAP_FLAGS, MISDEEDS, good
from guest_peers.rogue import Rogue
from vhostblk.guest.connection import Connection
from vhostblk.guest.touches import Report


def main(path: str, auditor: str, misdeed: str) -> None:
    """Serve for ever."""
    reports = []

    def on_map(fd: int, mapping: mmap.mmap, offset: int) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        reports.append(Report(auditor, fd=fd, address=address, length=len(mapping), offset=offset))

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        rogue = Rogue(
            connection,
            MISDEEDS.get(misdeed, good),
            map_flags=MAP_FLAGS.get(misdeed, mmap.MAP_SHARED),
            on_map=on_map,
        )
        rogue.run(Connection(connection, 10))


if __name__ == "__main__":
    main(*sys.argv[1:])
