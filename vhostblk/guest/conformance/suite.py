"""All tests, for the namespace of a test module: ``from ….suite import *``."""

from vhostblk.guest.conformance.test_config import *  # noqa: F403 - pytest looks for names
from vhostblk.guest.conformance.test_lifecycle import *  # noqa: F403
from vhostblk.guest.conformance.test_ranges import *  # noqa: F403
from vhostblk.guest.conformance.test_reading import *  # noqa: F403
from vhostblk.guest.conformance.test_writing import *  # noqa: F403
