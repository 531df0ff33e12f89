"""
See, before the first request, that a disk's methods can be called as a server calls them.

Python finds a parameter too few only when a guest asks; the guest then has an I/O error, and who
wrote the disk a traceback in a log.  Here it is one line at start, which says what to write.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from vhostblk.disk.api import Disk
from vhostblk.errors import VhostBlkError

DATA = (bytes, bytearray, memoryview)
"""What a `Disk.read` returns that was written for another contract."""


@dataclass(frozen=True, slots=True)
class _Duty:
    """
    How a method is called.

    Args:
        given: Names of what is given by place, in order.
        named: Names of what is given by keyword.
        plain: It cannot be ``async``.
    """

    given: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    plain: bool = False

    def written(self, name: str) -> str:
        """Return how to begin such a method."""
        parameters = ["self", *self.given, *(("*", *self.named) if self.named else ())]
        return f"def {name}({', '.join(parameters)})"


_DUTIES: Mapping[str, _Duty] = MappingProxyType(
    {
        "info": _Duty(plain=True),
        "read": _Duty(("offset", "views")),
        "write": _Duty(("offset", "views")),
        "flush": _Duty(),
        "discard": _Duty(("offset", "length")),
        "write_zeroes": _Duty(("offset", "length"), ("unmap",)),
        "block_status": _Duty(("offset", "length"), plain=True),
        "resize": _Duty(("size",)),
        "inherit": _Duty(("before",)),
        "open": _Duty(),
        "close": _Duty(),
    }
)

_LENGTHS = frozenset({"length", "size", "count", "nbytes"})
"""What a second parameter of `Disk.read` is called by who expects to return bytes."""


def check(disk: object) -> None:
    """
    Raise unless each method that a disk defines itself takes what it will be given.

    Raises:
        VhostBlkError: One does not; what to write in its place.
    """
    for name, duty in _DUTIES.items():
        method = getattr(disk, name, None)
        own = getattr(method, "__func__", method) is not getattr(Disk, name)
        if callable(method) and own:
            _check(f"{type(disk).__name__}.{name}", name, duty, method)


def no_data(disk: object, result: object) -> object:
    """
    Return what a `Disk.read` has returned, or raise if that is data.

    The guest would take what was in its memory before for what is on the disk.

    Args:
        disk: Whose it is.
        result: Of the call, or of the awaitable that it gave.

    Raises:
        TypeError: What to write in its place.
    """
    if isinstance(result, DATA):
        raise TypeError(
            f"{type(disk).__name__}.read returned {type(result).__name__}, which nobody looks at: "
            "copy into the views, view[:] = …"
        )
    return result


def _check(where: str, name: str, duty: _Duty, method: Callable[..., object]) -> None:
    wanted = f"write {duty.written(name)}"
    if duty.plain and _is_async(method):
        raise VhostBlkError(f"{where} is async, and is called by who cannot wait: {wanted}")
    if name != "block_status" and inspect.isgeneratorfunction(method):
        raise VhostBlkError(f"{where} has a yield in it, so that a call does nothing: return")
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # a callable without a Python signature
        return
    try:
        signature.bind(*duty.given, **dict.fromkeys(duty.named))
    except TypeError:
        try:
            signature.bind(*duty.given, **dict.fromkeys((*duty.named, "fua")))
        except TypeError as error:
            raise VhostBlkError(f"{where} cannot be called ({error}): {wanted}") from None
    if _misread(duty, tuple(signature.parameters)):
        raise VhostBlkError(f"{where}{signature} has other parameters than a disk's: {wanted}")


def _is_async(method: Callable[..., object]) -> bool:
    return inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


def _misread(duty: _Duty, names: Sequence[str]) -> bool:
    """Whether parameters mean something else than what comes at their places."""
    if duty.given[:1] != ("offset",):
        return False
    if "offset" in names[1:]:
        return True
    return duty.given[1] == "views" and names[1:2] != () and names[1] in _LENGTHS
