"""JSON-RPC without a transport: every line has the answer the standard wants."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.errors import Refused, VhostBlkError
from vhostblk.server.jsonrpc import MAX_BATCH, Dispatcher, Json, NoDevice, method

NOTED: list[str] = []


async def subtract(minuend: int, subtrahend: int) -> Json:
    """Subtract."""
    return minuend - subtrahend


async def note(text: str, loud: bool = False) -> Json:  # noqa: FBT001, FBT002 - as RPC has them
    """Note a text."""
    NOTED.append(text.upper() if loud else text)
    return None


async def fail(kind: str) -> Json:
    """Raise."""
    errors: dict[str, Exception] = {
        "failed": VhostBlkError("choose another"),
        "refused": Refused(5, "not now"),
        "device": NoDevice("no device is called 'x'"),
        "os": FileNotFoundError(2, "No such file or directory", "/a"),
        "bug": KeyError("k"),
    }
    raise errors[kind]


async def settings(name: str, **rest: Json) -> Json:
    """Take whatever is given."""
    return {"name": name, **rest}


DISPATCHER = Dispatcher({one.__name__: method(one) for one in (subtract, note, fail, settings)})


def answer(line: str | bytes) -> Json:
    """What is answered; None: nothing."""
    data = line if isinstance(line, bytes) else line.encode()
    told = asyncio.run(DISPATCHER.answer(data))
    if told is None:
        return None
    assert told.endswith(b"\n")
    assert told.count(b"\n") == 1
    found: Json = json.loads(told)
    return found


def code(line: str | bytes) -> tuple[int, object]:
    """Code and id of an error."""
    told = answer(line)
    assert isinstance(told, dict)
    error = told["error"]
    assert isinstance(error, dict)
    assert told.keys() == {"jsonrpc", "error", "id"}
    assert isinstance(error["message"], str)
    assert "\n" not in error["message"]
    assert isinstance(error["code"], int)
    return error["code"], told["id"]


def test_the_standards_own_examples() -> None:
    """Positional and named parameters, whatever their order. Specification, 7."""
    for params in ("[42, 23]", '{"subtrahend": 23, "minuend": 42}'):
        line = f'{{"jsonrpc": "2.0", "method": "subtract", "params": {params}, "id": 1}}'
        assert answer(line) == {"jsonrpc": "2.0", "result": 19, "id": 1}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"jsonrpc": "2.0", "method": "foobar", "id": "1"}', (-32601, "1")),
        ('{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', (-32700, None)),
        ('{"jsonrpc": "2.0", "method": 1, "params": "bar"}', (-32600, None)),
        ("[]", (-32600, None)),
        ('{"method": "subtract", "params": [1, 2], "id": 7}', (-32600, 7)),
        ('{"jsonrpc": "1.0", "method": "subtract", "id": 7}', (-32600, 7)),
        ('{"jsonrpc": "2.0", "id": 7}', (-32600, 7)),
        ('{"jsonrpc": "2.0", "method": "note", "params": "x", "id": 7}', (-32600, 7)),
        ('{"jsonrpc": "2.0", "method": "note", "params": null, "id": 7}', (-32600, 7)),
        ('{"jsonrpc": "2.0", "method": "note", "params": ["x"], "id": [1]}', (-32600, None)),
        ('{"jsonrpc": "2.0", "method": "note", "params": ["x"], "id": true}', (-32600, None)),
        ("1", (-32600, None)),
        ("null", (-32600, None)),
        ("[" * 60000, (-32700, None)),
        ("1" * 60000, (-32700, None)),
        (b"\xff\xfe{}", (-32700, None)),
        ('{"jsonrpc": "2.0", "method": "note", "params": [NaN], "id": 1}', (-32700, None)),
        ('{"jsonrpc": "2.0", "method": "note", "params": ["x"], "id": 1e999}', (-32700, None)),
        ('{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "note"}', (-32700, None)),
        (json.dumps([1] * (MAX_BATCH + 1)), (-32600, None)),
    ],
)
def test_what_is_no_request_is_told(line: str | bytes, expected: tuple[int, object]) -> None:
    """One error with the standard's code, and the id where one can be found. 4.2, 5, 5.1."""
    assert code(line) == expected


@pytest.mark.parametrize(
    "params",
    [
        "{}",
        "[1]",
        "[1, 2, 3]",
        '{"minuend": 1, "subtrahend": 2, "more": 3}',
        '["1", 2]',
        "[true, 2]",
        "[1.0, 2]",
        "[null, 2]",
        "[{}, 2]",
    ],
)
def test_parameters_that_do_not_fit_are_told(params: str) -> None:
    """Missing, unknown, too many, of another type; true is no number."""
    line = f'{{"jsonrpc": "2.0", "method": "subtract", "params": {params}, "id": 1}}'
    assert code(line) == (-32602, 1)


@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800"])
def test_text_that_names_nothing_is_refused(text: str) -> None:
    """A NUL or half of a surrogate pair would fail deep inside; here it is told."""
    line = f'{{"jsonrpc": "2.0", "method": "settings", "params": {{"name": "{text}"}}, "id": 1}}'
    assert code(line) == (-32602, 1)


def test_methods_may_take_the_rest() -> None:
    """What a method checks itself reaches it, named parameters are checked all the same."""
    line = '{"jsonrpc": "2.0", "method": "settings", "params": {"name": "a", "n": 1}, "id": 1}'
    assert answer(line) == {"jsonrpc": "2.0", "result": {"name": "a", "n": 1}, "id": 1}
    assert (
        code('{"jsonrpc": "2.0", "method": "settings", "params": {"n": 1}, "id": 1}')[0] == -32602
    )


@pytest.mark.parametrize(
    ("kind", "expected", "says"),
    [
        ("failed", -32000, "choose another"),
        ("refused", -32000, "not now"),
        ("device", -32001, "no device is called 'x'"),
        ("os", -32000, "/a: No such file or directory"),
        ("bug", -32603, "internal error: KeyError"),
    ],
)
def test_errors_of_methods_have_their_codes(kind: str, expected: int, says: str) -> None:
    """The text is the one a person can act on; a bug of ours tells no more than its kind."""
    line = f'{{"jsonrpc": "2.0", "method": "fail", "params": ["{kind}"], "id": 1}}'
    assert code(line) == (expected, 1)
    assert says in json.dumps(answer(line))


def test_notifications_are_done_and_never_answered() -> None:
    """Neither results nor errors of what has no id are told; a null id is an id. 4.1."""
    NOTED.clear()
    told = answer('{"jsonrpc": "2.0", "method": "note", "params": ["x", true]}')
    assert (told, NOTED) == (None, ["X"])
    for quiet in ('"note", "params": [1]', '"foobar"', '"fail", "params": ["bug"]'):
        assert answer(f'{{"jsonrpc": "2.0", "method": {quiet}}}') is None
    line = '{"jsonrpc": "2.0", "method": "note", "params": ["y"], "id": null}'
    assert answer(line) == {"jsonrpc": "2.0", "result": None, "id": None}


def test_batch_is_answered_in_one_line() -> None:
    """Answers of those that have one, in order; of notifications alone there is none. 6."""
    told = answer(
        '[{"jsonrpc": "2.0", "method": "subtract", "params": [3, 1], "id": 1},'
        ' {"jsonrpc": "2.0", "method": "note", "params": ["x"]}, 1, [],'
        ' {"jsonrpc": "2.0", "method": "subtract", "params": [9, 1], "id": "b"}]'
    )
    assert isinstance(told, list)
    first, *bad, last = [one for one in told if isinstance(one, dict)]
    assert (first["result"], last["result"]) == (2, 8)
    assert ['"code": -32600' in json.dumps(one) for one in bad] == [True, True]
    assert answer('[{"jsonrpc": "2.0", "method": "note", "params": ["x"]}]') is None


def test_calls_that_change_something_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With who asked; others are not."""
    caplog.set_level("INFO")

    def made(call: Callable[..., Awaitable[Json]], *, changes: bool) -> Dispatcher:
        return Dispatcher({"m": method(call, name="m", changes=changes)})

    for changes in (True, False):
        line = b'{"jsonrpc": "2.0", "method": "m", "params": ["x"], "id": 1}'
        asyncio.run(made(note, changes=changes).answer(line, "process 7 of user 0"))
    assert [one.getMessage() for one in caplog.records] == ["m: asked by process 7 of user 0"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON,
        "method": st.sampled_from([*DISPATCHER.methods]) | JSON,
        "params": JSON,
        "id": JSON,
    },
)


@given(st.binary() | st.builds(lambda one: json.dumps(one).encode(), REQUEST | st.lists(REQUEST)))
def test_any_line_has_an_answer_or_is_a_notification(line: bytes) -> None:
    """Nothing that can be sent raises, and each answer is one JSON-RPC can have."""
    told = answer(line)
    for one in told if isinstance(told, list) else [] if told is None else [told]:
        assert isinstance(one, dict)
        assert one.keys() in ({"jsonrpc", "result", "id"}, {"jsonrpc", "error", "id"})
