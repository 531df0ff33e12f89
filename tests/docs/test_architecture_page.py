"""The architecture page tells a newcomer where things are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/explanation/architecture.md").read_text()


def named() -> set[str]:
    """Return all file names in the table of modules, with those that braces stand for."""
    table = PAGE[PAGE.index("## Modules") : PAGE.index("## One request")]
    names = set(re.findall(r"\b(\w+\.(?:py|c|h))\b", table))
    for inside, suffix in re.findall(r"\{([\w,]+)\}(\.\w)", table):
        names |= {stem + suffix for stem in inside.split(",")}
    return names


@pytest.mark.parametrize("room", ["vhostblk/server", "vhostblk/cli", "native/src"])
def test_every_file_is_there(room: str) -> None:
    """Whoever adds a module says in the table what it is for."""
    files = {one.name for one in (ROOT / room).iterdir() if one.suffix in {".py", ".c", ".h"}}
    assert sorted(files - {"__init__.py"} - named()) == []
