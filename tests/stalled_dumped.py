"""The same, and it lets our bounce memory into core dumps: the negative control."""

from unittest import mock

from dumped import MADV_DODUMP
from stalled import run

if __name__ == "__main__":
    with mock.patch("mmap.MADV_DONTDUMP", MADV_DODUMP):
        run()
