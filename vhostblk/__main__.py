"""``python -m vhostblk`` is ``vhostblk``."""

import sys

from vhostblk.cli.main import main

sys.exit(main())
