"""
A disk that is somebody's Python class, named as text: ``python:module:Class,size=1G``.

The text becomes arguments by what the class says of its parameters, so an annotation is all it
takes for ``size=1G`` to arrive as a number.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Union, cast, get_args, get_origin

from vhostblk.disk.api import Disk
from vhostblk.disk.call import Calls
from vhostblk.disk.grammar import parse_size
from vhostblk.errors import VhostBlkError

_TRUE = frozenset({"on", "true", "yes", "1"})
_FALSE = frozenset({"off", "false", "no", "0"})


def load(name: str, arguments: Mapping[str, str]) -> Disk:
    """
    Import a class, or anything that returns a disk, and call it.

    Args:
        name: ``module:Class``; the module is also looked for in the current directory.
        arguments: By parameter name, where ``-`` stands for ``_`` too.

    Raises:
        VhostBlkError: It cannot be found, called with these, or is no disk.
    """
    factory = _find(name)
    if not callable(factory):
        raise VhostBlkError(f"python:{name} cannot be called: name a class or a function")
    values = _values(name, factory, arguments)
    try:
        disk = factory(**values)
    except Exception as error:
        raise VhostBlkError(f"python:{name} failed: {_in_a_line(error)}") from error
    return Calls(disk).disk


def load_again(name: str, arguments: Mapping[str, str]) -> Disk:
    """
    Import a module once more, as it is now, and make a disk of its class.

    Other modules that it imports are not; objects of the old class stay what they are.

    Args:
        name: As for `load`.
        arguments: The same.

    Raises:
        VhostBlkError: The module cannot be imported, or it is as for `load`.
    """
    module = sys.modules.get(name.partition(":")[0])
    if module is not None:
        importlib.invalidate_caches()
        try:
            importlib.reload(module)
        except Exception as error:
            raise VhostBlkError(
                f"python:{name}: module {module.__name__!r} cannot be imported again: "
                f"{_in_a_line(error)}"
            ) from error
    return load(name, arguments)


def _find(name: str) -> object:
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise VhostBlkError(f"python:{name}: write python:module:Class")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module)
    except Exception as error:
        raise VhostBlkError(
            f"python:{name}: module {module!r} cannot be imported from {here} or PYTHONPATH: "
            f"{_in_a_line(error)}"
        ) from error
    try:
        return reduce(getattr, path.split("."), found)
    except AttributeError as error:
        raise VhostBlkError(f"python:{name}: module {module!r} has no {path!r}") from error


def _values(
    name: str, factory: Callable[..., object], arguments: Mapping[str, str]
) -> dict[str, object]:
    """Convert text to what the parameters want; say what is unknown and what is missing."""
    known = _parameters(factory)
    rest = [p for p in known.values() if p.kind is p.VAR_KEYWORD]
    named = {k: p for k, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    values: dict[str, object] = {}
    for key, text in arguments.items():
        parameter = named.get(key.replace("-", "_"), *rest[:1])
        if parameter is None:
            raise VhostBlkError(
                f"python:{name} takes no {key!r} (it takes {', '.join(named) or 'nothing'})"
            )
        if key.replace("-", "_") in values:
            raise VhostBlkError(f"python:{name}: {key!r} is given twice: say it once")
        values[key.replace("-", "_")] = _convert(f"python:{name}: {key}", text, parameter)
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in values:
            raise VhostBlkError(f"python:{name} needs {key}: add ,{key}=…")
    return values


def _parameters(factory: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory, eval_str=True).parameters
    except NameError:  # an annotation that is for type checkers only
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):  # written in C, says nothing
        return {}


def _convert(what: str, text: str, parameter: inspect.Parameter) -> object:
    """Turn text into the annotated type, else into that of the default, else leave it text."""
    kind = _kind(parameter)
    try:
        if kind is bool:
            return _boolean(text)
        if kind is int:
            return _integer(text, what)
        if kind in {float, Path}:
            return cast("type", kind)(text)
    except ValueError:
        wanted = "on or off" if kind is bool else "a number"
        raise VhostBlkError(f"{what}={text} is not {wanted}") from None
    return text


def _kind(parameter: inspect.Parameter) -> object:
    """Return the type that is meant; of ``int | None`` the int."""
    kind: object = parameter.annotation
    if get_origin(kind) in {Union, UnionType}:
        kind = next((k for k in get_args(kind) if k is not NoneType), str)
    if isinstance(kind, str):
        # An annotation that could not be evaluated; the plain names are still plain.
        return {"int": int, "float": float, "bool": bool}.get(kind, str)
    if kind is parameter.empty and parameter.default is not parameter.empty:
        return type(parameter.default)
    return kind


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


def _integer(text: str, what: str) -> int:
    """Read an int as Python writes it (0x10, -1), or a size with its suffix."""
    try:
        return int(text, 0)
    except ValueError:
        return parse_size(text, what)


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
