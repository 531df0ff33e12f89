"""
The state document's values as JSON, and back; and which of their fields are descriptors.

Nothing is guessed: what is missing without a default, what is of another kind, and what is not
known is named and refused.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Literal, TypeVar, get_args, get_origin, get_type_hints

from vhostblk.errors import VhostBlkError

_T = TypeVar("_T")


def encode(value: object) -> bytes:
    """Return the JSON of one of these values."""
    return json.dumps(_plain(value), separators=(",", ":")).encode()


def decode(kind: type[_T], text: bytes) -> _T:
    """
    Read the JSON of a *kind*.

    Raises:
        VhostBlkError: It is not; says where.
    """
    try:
        return _read(kind, json.loads(text), kind.__name__)  # type: ignore[return-value]
    except ValueError as error:
        raise VhostBlkError(f"the state document is no JSON: {error}") from error


def _plain(value: object) -> object:
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


def _read(kind: object, value: object, where: str) -> object:
    """Return *value* as a *kind*, one of those that the classes above are made of."""
    if isinstance(kind, UnionType):
        kinds = [one for one in get_args(kind) if one is not NoneType]
        return None if value is None else _read(kinds[0], value, where)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_read(get_args(kind)[0], one, where) for one in value)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return _read_fields(kind, value, where)
    if kind is float and type(value) is int:
        return float(value)
    if _as_it_is(kind, value):
        return value
    raise VhostBlkError(f"the state document has {value!r} for {where}")


def _as_it_is(kind: object, value: object) -> bool:
    """Tell whether JSON has such a value as we do; a table's are whoever reads it to check."""
    if get_origin(kind) is Mapping:
        return isinstance(value, dict)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    return isinstance(kind, type) and type(value) is kind


def _read_fields(kind: type, value: Mapping[str, object], where: str) -> object:
    hints = get_type_hints(kind)
    known = {one.name: one for one in fields(kind)}
    for name in value:
        if name not in known:
            raise VhostBlkError(f"the state document has {where}.{name}, which we do not know")
    missing = [name for name, one in known.items() if name not in value and one.default is MISSING]
    if missing:
        raise VhostBlkError(f"the state document has no {where}.{missing[0]}")
    read = {name: _read(hints[name], one, f"{where}.{name}") for name, one in value.items()}
    return kind(**read)


# ---- descriptors --------------------------------------------------------------------------

_FDS = frozenset({"fd", "fds", "kick", "call", "err", "disk", "saved"})
"""Fields that hold descriptors."""


def renumber(value: _T, change: Callable[[int], int]) -> _T:
    """
    Return one of these values with other numbers for its descriptors.

    Args:
        value: Which.
        change: Told each of them, in the order of the document.
    """
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {
        one.name: _renumbered(one.name, getattr(value, one.name), change) for one in fields(value)
    }
    return replace(value, **changed)


def _renumbered(name: str, value: object, change: Callable[[int], int]) -> object:
    if isinstance(value, tuple):
        return tuple(_renumbered(name, one, change) for one in value)
    if name in _FDS and isinstance(value, int):
        return change(value)
    return renumber(value, change)
