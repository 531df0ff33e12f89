"""Settings of every test."""

import gc

from hypothesis import settings

# The same examples at every run, whatever was found before; a busy machine is no failure.
settings.register_profile(
    "vhostblk", derandomize=True, database=None, deadline=None, print_blob=True
)
settings.load_profile("vhostblk")


def pytest_collection_finish() -> None:
    """
    Leave modules and the tests themselves out of every collection of garbage from here on.

    Tests that count what is left behind collect it first, some in a loop; with thousands of tests
    in the heap that took most of their time.
    """
    gc.collect()
    gc.freeze()
