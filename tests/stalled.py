"""``vhostblk`` whose bounced writes never end, so that their data stay; for test_leaks.py."""

import logging
import sys
import threading
from unittest import mock

from vhostblk.cli import main
from vhostblk.disk.transfer import Bounce
from vhostblk.server import registers


def stall(*_: object, **__: object) -> None:
    """Say so, and wait for ever."""
    registers.forget()
    logging.getLogger("vhostblk").warning("stalled")
    threading.Event().wait()


def run() -> None:
    """Run the command line like that."""
    with mock.patch.object(Bounce, "_drain", stall):
        sys.exit(main.main(sys.argv[1:]))


if __name__ == "__main__":
    run()
