import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

import pytest

from vhostblk.disk.python import load
from vhostblk.errors import VhostBlkError

SOURCE = """
from pathlib import Path
from typing import Optional, TYPE_CHECKING

from vhostblk.disk.api import DiskInfo

if TYPE_CHECKING:
    from nowhere import Thing


class Base:
    def info(self):
        return DiskInfo(size=512)

    def read(self, offset, views):
        pass


class Typed(Base):
    def __init__(self, size: int, name: str = "x", *, rate: float = 1.0, fast: bool = False,
                 where: Path | None = None, count: Optional[int] = None, plain="p", number=7):
        self.got = (size, name, rate, fast, where, count, plain, number)


class Later(Base):
    def __init__(self, size: "int", thing: "Thing" = None):
        self.got = (size, thing)


class Open(Base):
    def __init__(self, **kwargs):
        self.got = kwargs


class Broken(Base):
    def __init__(self):
        raise RuntimeError("two\\nlines")


class NoDisk:
    pass


class Outer:
    class Inner(Base):
        got = "inner"


def factory(size: int = 512):
    return Typed(size)


VALUE = 7
"""


class Got(Protocol):
    """A disk that shows what it was made with."""

    got: object


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand in a directory with a module of disks in it."""
    (tmp_path / "mydisks.py").write_text(SOURCE)
    (tmp_path / "bad.py").write_text("import does_not_exist")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("mydisks", None)
    sys.modules.pop("bad", None)


def got(what: str, /, **arguments: str) -> object:
    """Load a disk and return what it was made with."""
    return cast("Got", load(what, {k.replace("_", "-"): v for k, v in arguments.items()})).got


def test_arguments_become_what_the_annotation_says() -> None:
    """An int with or without a suffix, float, bool, Path, optional ones; the rest stays text."""
    assert got(
        "mydisks:Typed",
        size="1G",
        name="4G",
        rate="2.5",
        fast="on",
        where="/x",
        count="0x10",
        plain="1",
        number="2K",
    ) == (1 << 30, "4G", 2.5, True, Path("/x"), 16, "1", 2048)
    assert got("mydisks:Typed", size="-1") == (-1, "x", 1.0, False, None, None, "p", 7)


def test_annotations_that_are_text_are_read() -> None:
    """Quoted annotations count; one for type checkers only leaves its argument text."""
    assert got("mydisks:Later", size="1M", thing="t") == (1 << 20, "t")


def test_dashes_stand_for_underscores_and_kwargs_take_the_rest() -> None:
    """An option written read-only reaches a parameter read_only."""
    assert got("mydisks:Open", read_only="on") == {"read_only": "on"}


def test_functions_and_nested_classes_do_too() -> None:
    """Anything callable that returns a disk will do, at any depth."""
    assert got("mydisks:Outer.Inner") == "inner"
    assert got("mydisks:factory", size="1K") == (1024, "x", 1.0, False, None, None, "p", 7)


@pytest.mark.parametrize("word", ["yes", "TRUE", "1", "On"])
def test_a_bool_has_more_than_one_name(word: str) -> None:
    """As people write it."""
    assert cast("tuple[object, ...]", got("mydisks:Typed", size="1", fast=word))[3] is True


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mydisks", {}, "write python:module:Class"),
        ("mydisks:", {}, "write python:module:Class"),
        ("nowhere:X", {}, "module 'nowhere' cannot be imported from .* or PYTHONPATH"),
        ("bad:X", {}, "cannot be imported .* No module named 'does_not_exist'"),
        ("mydisks:Nope", {}, "module 'mydisks' has no 'Nope'"),
        ("mydisks:VALUE", {}, "cannot be called: name a class or a function"),
        ("mydisks:Typed", {}, "needs size: add ,size="),
        ("mydisks:Typed", {"size": "1", "x": "2"}, "takes no 'x' .it takes size, name, rate"),
        ("mydisks:Typed", {"size": "big"}, "python:mydisks:Typed: size 'big' is not a size"),
        ("mydisks:Typed", {"size": "1", "rate": "x"}, "rate=x is not a number"),
        ("mydisks:Typed", {"size": "1", "fast": "x"}, "fast=x is not on or off"),
        ("mydisks:Open", {"a-b": "1", "a_b": "2"}, "'a_b' is given twice"),
        ("mydisks:Broken", {}, "python:mydisks:Broken failed: RuntimeError: two lines"),
        ("mydisks:NoDisk", {}, "NoDisk is not a disk: it defines no method 'info'"),
    ],
)
def test_what_cannot_be_made_says_why(name: str, arguments: dict[str, str], message: str) -> None:
    """Each fault is one line, with the class's own words in it where it has some."""
    with pytest.raises(VhostBlkError, match=message) as caught:
        load(name, arguments)
    assert "\n" not in str(caught.value)
