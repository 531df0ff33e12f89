"""Which vhostblk this is."""


def version() -> str:
    """Return the version, as it was installed."""
    from importlib import metadata  # noqa: PLC0415 - most servers are never asked

    try:
        return metadata.version("vhostblk")
    except metadata.PackageNotFoundError:
        return "(run from a source tree, not installed)"
