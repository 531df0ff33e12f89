"""Settings of every test."""

from hypothesis import settings

# The same examples at every run, whatever was found before; a busy machine is no failure.
settings.register_profile(
    "vhostblk", derandomize=True, database=None, deadline=None, print_blob=True
)
settings.load_profile("vhostblk")
