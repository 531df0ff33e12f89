"""Caches that have little room."""

from vhostblk.disk.cache import Cache, Mode

MODES = tuple(Mode)


def small(below: object, mode: str, held: int = 10 * 4096) -> Cache:
    """Return a cache that has to forget blocks all the time."""
    cache = Cache(below, mode=mode)
    cache._size = held
    return cache
