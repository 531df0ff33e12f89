import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vhostblk.memory.regions import Place, Wanted

PAGE = 4096
MakeFd = Callable[..., int]
MakeWanted = Callable[..., Wanted]


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def guest_maps() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:guest")


@pytest.fixture(autouse=True, scope="package")
def _nothing_of_others() -> None:
    """What other rooms left to the garbage collector does not go in the middle of a test here."""
    gc.collect()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Every test of this room ends with the descriptors and mappings it began with."""
    before = open_fds(), guest_maps()
    yield
    assert (open_fds(), guest_maps()) == before


@pytest.fixture(scope="session")
def memory() -> Iterator[int]:
    """Return the descriptor of 4 MiB of shared memory."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 4 << 20)
    yield fd
    os.close(fd)


@pytest.fixture(scope="session")
def wanted(memory: int) -> MakeWanted:
    """Return a maker of wanted regions, in pages of the shared memory."""

    def make(gpa: int, pages: int = 1, *, uva: int | None = None, offset: int = 0) -> Wanted:
        place = Place(gpa=gpa, size=pages * PAGE, uva=gpa + (1 << 40) if uva is None else uva)
        return Wanted(place=place, mmap_offset=offset, fd=os.dup(memory))

    return make
