"""
JSON-RPC 2.0 without a transport: one line of text in, one line or nothing out.

Methods are plain ``async`` functions with annotated parameters; what they are called with is
checked against those before they are.  Whatever a line holds, the answer is an answer.

Specification: https://www.jsonrpc.org/specification
"""

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import isfinite
from types import NoneType, UnionType
from typing import NoReturn, TypeAlias, get_args, get_origin

from vhostblk.errors import VhostBlkError

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What JSON can say."""

MAX_BATCH = 32
"""Requests in one batch: answers may be long, and are sent together."""

_log = logging.getLogger(__name__)


class Code(IntEnum):
    """Error codes; those from -32099 to -32000 are ours to define."""

    PARSE = -32700
    INVALID = -32600
    NO_METHOD = -32601
    PARAMS = -32602
    INTERNAL = -32603
    FAILED = -32000
    NO_DEVICE = -32001
    BUSY = -32002


class NoDevice(VhostBlkError):  # noqa: N818 - it is an answer
    """There is no device of that name."""


class RpcError(Exception):
    """
    What a request is answered with instead of a result.

    Args:
        code: Of what kind.
        message: One line that says what to do.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


_KINDS: Mapping[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    NoneType: "null",
}


@dataclass(frozen=True, slots=True)
class Method:
    """
    A method that can be called by name.

    Args:
        name: Its name.
        call: What it does.
        params: By name, in order: the types each may have.
        required: Names that must be given.
        rest: It takes any others, too, and checks them itself.
        changes: Its calls are worth a line in the log.
    """

    name: str
    call: Callable[..., Awaitable[Json]]
    params: Mapping[str, tuple[type, ...]]
    required: frozenset[str]
    rest: bool = False
    changes: bool = False


def method(
    call: Callable[..., Awaitable[Json]], *, name: str = "", changes: bool = False
) -> Method:
    """
    Make a method of an ``async`` function; its parameters are annotated with JSON's types.

    Args:
        call: The function.
        name: What it is called; else its own name.
        changes: Its calls are worth a line in the log.
    """
    params: dict[str, tuple[type, ...]] = {}
    required, rest = set(), False
    for one in inspect.signature(call).parameters.values():
        if one.kind is one.VAR_KEYWORD:
            rest = True
            continue
        params[one.name] = _types(one.annotation)
        if one.default is one.empty:
            required.add(one.name)
    return Method(name or call.__name__, call, params, frozenset(required), rest, changes)


def _types(annotation: object) -> tuple[type, ...]:
    """Return the types of ``X | None``, or of ``X``; of ``dict[str, Json]`` it is the dict."""
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return tuple(get_origin(kind) or kind for kind in kinds)


@dataclass(slots=True)
class Dispatcher:
    """
    Answers lines.

    Args:
        methods: What can be called.
    """

    methods: Mapping[str, Method] = field(default_factory=dict)

    async def answer(self, line: bytes, asker: str = "somebody") -> bytes | None:
        """
        Do what a line asks.

        Args:
            line: A request or a batch of them.
            asker: Who, for the log.

        Returns:
            The line to answer with; None: none is due.
        """
        try:
            asked = _parse(line)
        except RpcError as error:
            return _line(_failure(None, error))
        if not isinstance(asked, list):
            one = await self._one(asked, asker)
            return None if one is None else _line(one)
        if not asked or len(asked) > MAX_BATCH:
            text = f"a batch has 1 to {MAX_BATCH} requests, not {len(asked)}"
            return _line(_failure(None, RpcError(Code.INVALID, text)))
        answers = [await self._one(request, asker) for request in asked]
        due = [answer for answer in answers if answer is not None]
        return _line(due) if due else None

    async def _one(self, request: Json, asker: str) -> Json:
        """Answer one request; None: it is a notification."""
        await asyncio.sleep(0)  # a long batch is not to hold up the devices
        try:
            name, params, wants_answer = _checked(request)
        except RpcError as error:
            return _failure(_id(request), error)
        try:
            result = await self._call(name, params, asker)
        except RpcError as error:
            return _failure(_id(request), error) if wants_answer else None
        if not wants_answer:
            return None
        return {"jsonrpc": "2.0", "result": result, "id": _id(request)}

    async def _call(self, name: str, params: Json, asker: str) -> Json:
        chosen = self.methods.get(name)
        if chosen is None:
            known = ", ".join(sorted(self.methods))
            raise RpcError(Code.NO_METHOD, f"no method {_short(name)}; there are {known}")
        arguments = bind(chosen, params)
        if chosen.changes:
            _log.info("%s: asked by %s", name, asker)
        try:
            return await chosen.call(**arguments)
        except NoDevice as error:
            raise RpcError(Code.NO_DEVICE, str(error)) from error
        except VhostBlkError as error:
            raise RpcError(Code.FAILED, str(error)) from error
        except OSError as error:
            raise RpcError(Code.FAILED, _os_error(error)) from error
        except Exception as error:
            _log.exception("a bug of ours, in method %s", name)
            text = f"internal error: {type(error).__name__}; the log has its traceback"
            raise RpcError(Code.INTERNAL, text) from error


def bind(chosen: Method, params: Json) -> dict[str, Json]:
    """
    Match what was given with what a method takes.

    Args:
        chosen: The method.
        params: By name or in order; None: nothing.

    Raises:
        RpcError: It does not fit; says what is taken.
    """
    given = _named(chosen, params)
    unknown = [name for name in given if name not in chosen.params]
    if unknown and not chosen.rest:
        some = ", ".join(chosen.params) or "nothing"
        raise RpcError(Code.PARAMS, f"{chosen.name} takes no {_short(unknown[0])}; it takes {some}")
    for name in chosen.params:
        if name in chosen.required and name not in given:
            raise RpcError(Code.PARAMS, f"{chosen.name} needs {name}")
    for name, value in given.items():
        _check_text(chosen.name, name, value)
        kinds = chosen.params.get(name)
        if kinds is not None and type(value) not in kinds:
            wanted = " or ".join(_KINDS[kind] for kind in kinds)
            raise RpcError(Code.PARAMS, f"{chosen.name}: {name} is {wanted}, not {_short(value)}")
    return given


def _named(chosen: Method, params: Json) -> dict[str, Json]:
    if params is None:
        return {}
    if isinstance(params, Mapping):
        return dict(params)
    assert isinstance(params, list)  # noqa: S101 - _checked has looked
    if len(params) > len(chosen.params):
        some = ", ".join(chosen.params) or "none"
        raise RpcError(
            Code.PARAMS,
            f"{chosen.name} takes {len(chosen.params)} parameters ({some}), not {len(params)}",
        )
    return dict(zip(chosen.params, params, strict=False))


def _check_text(method_name: str, name: str, value: Json) -> None:
    """Refuse what JSON can say and no file name or log can hold."""
    try:
        fits = not isinstance(value, str) or b"\0" not in value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        fits = False
    if not fits:
        raise RpcError(Code.PARAMS, f"{method_name}: {name} holds a character that no text has")


def _parse(line: bytes) -> Json:
    try:
        asked: Json = json.loads(
            line.decode(),
            parse_constant=_no_constant,
            parse_float=_number,
            object_pairs_hook=_once,
        )
    except RpcError:
        raise
    except RecursionError:
        raise RpcError(Code.PARSE, "the line is no JSON we read: it is nested too deep") from None
    except ValueError as error:  # of the decoders, and of numbers with too many digits
        raise RpcError(Code.PARSE, f"the line is no JSON: {error}") from None
    return asked


def _no_constant(name: str) -> NoReturn:
    raise RpcError(Code.PARSE, f"the line is no JSON: {name} is not a number")


def _number(text: str) -> float:
    value = float(text)
    return value if isfinite(value) else _no_constant(text)  # nothing JSON could answer with


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RpcError(Code.PARSE, "the line is no JSON we read: a name is given twice")
    return found


def _checked(request: Json) -> tuple[str, Json, bool]:
    """Return method, parameters and whether an answer is due."""
    if not isinstance(request, Mapping):
        raise RpcError(Code.INVALID, f"a request is an object, not {_short(request)}")
    if request.get("jsonrpc") != "2.0":
        raise RpcError(Code.INVALID, 'a request has "jsonrpc": "2.0"')
    name, params = request.get("method"), request.get("params")
    if not isinstance(name, str):
        raise RpcError(Code.INVALID, 'a request has a "method", a text')
    if "params" in request and not isinstance(params, Mapping | list):
        raise RpcError(Code.INVALID, '"params" is an object or an array')
    if "id" in request and not _is_id(request["id"]):
        raise RpcError(Code.INVALID, '"id" is a text, a number or null')
    return name, params, "id" in request


def _is_id(value: Json) -> bool:
    return value is None or (isinstance(value, str | int | float) and not isinstance(value, bool))


def _id(request: Json) -> Json:
    """Return the id to answer with; null where there is none to be found."""
    value = request.get("id") if isinstance(request, Mapping) else None
    return value if _is_id(value) else None


def _failure(number: Json, error: RpcError) -> Json:
    told: Json = {"code": int(error.code), "message": str(error)}
    return {"jsonrpc": "2.0", "error": told, "id": number}


def failure(code: Code, text: str) -> bytes:
    """Return the line that tells of what went wrong before there was a request."""
    return _line(_failure(None, RpcError(code, text)))


def _line(answer: Json) -> bytes:
    # In ASCII, so that no text in it can end the line or the encoding.
    return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def _short(value: Json) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."  # noqa: PLR2004 - a part of a line


def _os_error(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text
