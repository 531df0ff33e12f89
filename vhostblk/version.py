"""Which vhostblk this is."""

from importlib import metadata


def version() -> str:
    """Return the version, as it was installed."""
    try:
        return metadata.version("vhostblk")
    except metadata.PackageNotFoundError:
        return "(run from a source tree, not installed)"
