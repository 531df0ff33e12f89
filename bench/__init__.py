"""Measurements: the same client drives vhostblk and its peers in turn (docs/reference/bench.md)."""
