"""What a process has open, to see what somebody left behind."""

import gc
import threading
from pathlib import Path


def open_fds() -> int:
    """Return how many descriptors are open, but for those that wait for the garbage collector."""
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def mappings(name: str = "guest") -> int:
    """Return how many mappings of guest memory there are: of a memfd of this name."""
    gc.collect()
    return Path("/proc/self/maps").read_text().count(f"memfd:{name} ")


def fake_guests() -> int:
    """Return how many mappings of a fake guest's memory there are, its own included."""
    gc.collect()  # not those that only wait for it
    return mappings("fake-guest")


def threads() -> int:
    """Return how many threads there are."""
    return threading.active_count()
