"""The control socket's page: its methods are those there are, its examples are what happens."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import running
from server_kit.control import ask

from vhostblk.engine.choose import load
from vhostblk.server.control import MAX_CONNECTIONS, MAX_LINE, SEND_SECONDS
from vhostblk.server.jsonrpc import MAX_BATCH, Code, Json
from vhostblk.server.operations import Operations
from vhostblk.server.server import Server
from vhostblk.server.upgrade import Upgrade

PAGE = (running.ROOT / "docs/reference/control.md").read_text()
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL))
PARAMETER = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.MULTILINE)
KINDS = {"string": str, "number": int, "boolean": bool, "object": dict}
EXAMPLE = re.compile(r"^--> (.*)\n<-- (.*)$", re.MULTILINE)
ANY = "…"


def methods() -> Operations:
    async def made() -> Operations:
        server = Server(load("reference"))
        return Operations(server, Upgrade(server, None, lambda: None), lambda: None)

    return asyncio.run(made())


METHODS = methods().methods()


def test_page_has_a_section_for_each_method() -> None:
    """No method is left out, none is made up."""
    assert sorted(SECTIONS) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_page_names_the_parameters_of(name: str) -> None:
    """Each has a row with its type, in the order of the method's, and says what may be left out."""
    table = SECTIONS[name].partition("| parameter | type |")[2].partition("\n\n")[0]
    shown = dict(PARAMETER.findall(table))
    chosen = METHODS[name]
    assert [*shown][: len(chosen.params)] == [*chosen.params]
    for parameter, kinds in chosen.params.items():
        told = shown[parameter]
        assert ("optional" in told) == (parameter not in chosen.required)
        assert {KINDS[word] for word in KINDS if word in told} == {*kinds} - {type(None)}
    assert "Errors: " in SECTIONS[name]


def test_page_tells_the_limits_and_codes_there_are() -> None:
    """Numbers in the page are those of the code."""
    for number in (MAX_LINE, MAX_BATCH, MAX_CONNECTIONS, int(SEND_SECONDS)):
        assert re.search(rf"^\| .* \| {number}\b", PAGE, re.MULTILINE), number
    assert set(re.findall(r"^\| (-32\d+) \|", PAGE, re.MULTILINE)) == {str(int(c)) for c in Code}


def matches(shown: Json, there: Json) -> bool:
    """Whether *there* is what is shown; of an object a part may be shown."""
    if shown == ANY:
        return True
    if isinstance(shown, dict) and isinstance(there, dict):
        return all(key in there and matches(shown[key], there[key]) for key in shown)
    if isinstance(shown, list) and isinstance(there, list):
        return len(shown) == len(there) and all(map(matches, shown, there))
    return shown == there


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Path]:
    """Serve what the examples are about; return the control socket."""
    path = tmp_path / "c"
    options = ("--control", path, "--engine", "reference")
    with running.serving(*options, "memory:4M", socket=tmp_path / "vm0.sock"):
        yield path


def test_examples_are_what_happens(control: Path) -> None:
    """One after the other, on one server; of an answer a part is shown."""
    examples = EXAMPLE.findall(PAGE)
    assert {json.loads(question)["method"] for question, _ in examples} == {*METHODS}
    for question, answer in examples:
        there = ask(control, question)
        assert matches(json.loads(answer), there), (question, there)
