"""A disk in memory for nbdkit's Python plugin: the counterpart of docs/examples/ram.py."""
# ruff: noqa: ARG001 - nbdkit's parameters

API_VERSION = 2
disk = bytearray()
asked = 1 << 20


def config(key: str, value: str) -> None:
    """Take ``size=BYTES``."""
    global asked  # noqa: PLW0603 - a plugin of nbdkit is a module
    if key != "size":
        raise RuntimeError(f"no parameter {key}")
    asked = int(value)


def config_complete() -> None:
    """Have the memory."""
    disk.extend(bytes(asked))


def open(readonly: int) -> int:  # noqa: A001 - nbdkit's name
    """Have nothing for a connection."""
    return 1


def get_size(h: int) -> int:
    """Return bytes."""
    return len(disk)


def pread(h: int, buf: bytearray, offset: int, flags: int) -> None:
    """Copy to *buf*."""
    buf[:] = memoryview(disk)[offset : offset + len(buf)]


def pwrite(h: int, buf: bytearray, offset: int, flags: int) -> None:
    """Copy from *buf*."""
    disk[offset : offset + len(buf)] = buf
