"""One line of text for a message, with the standard's names, for the log."""

from dataclasses import fields
from enum import IntFlag

from vhostblk.protocol.messages import REQUESTS, Invalid, MemoryRegion, Received

_HEX = frozenset(
    {"features", "gpa", "uva", "mmap_offset", "desc", "used", "avail", "log", "iova", "uaddr"}
)


def _value(name: str, value: object) -> str:
    match value:
        case IntFlag():
            return f"{int(value):#x}" + (f"({value.name})" if value.name else "")
        case int():
            return f"{value:#x}" if name in _HEX else str(int(value))
        case bytes():
            return value.hex()
        case tuple():
            return "".join(_value(name, region) for region in value)
        case MemoryRegion():
            return f"[{_fields(value)}]"
    return str(value)


def _fields(value: Received | MemoryRegion) -> str:
    shown = (field.name for field in fields(value) if field.name != "need_reply")
    return " ".join(f"{name}={_value(name, getattr(value, name))}" for name in shown)


def describe(message: Received) -> str:
    """
    Return *message* as one line: its standard name, then its fields.

    Example: ``SET_VRING_KICK index=0 fd=Fd(7) need_reply``.
    """
    if isinstance(message, Invalid):
        request = REQUESTS.get(message.number)
        name = f"message {message.number}" if request is None else request.name
        text = f"{name} invalid: {message.reason}"
    else:
        text = f"{message.request.name} {_fields(message)}".rstrip()
    return text + (" need_reply" if message.need_reply else "")
