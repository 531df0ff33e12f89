"""``vhostblk`` that lets guest memory into core dumps: the negative control of test_leaks.py."""

import sys
from unittest import mock

from vhostblk.cli import main

MADV_DODUMP = 17

if __name__ == "__main__":
    with mock.patch("mmap.MADV_DONTDUMP", MADV_DODUMP):
        sys.exit(main.main(sys.argv[1:]))
