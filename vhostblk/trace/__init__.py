"""Recordings of what a guest asked of a disk: how they are stored, read, and shown."""
