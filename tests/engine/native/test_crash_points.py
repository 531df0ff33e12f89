"""The places to die at are a test's: what is installed has none."""

import re
from pathlib import Path

import pytest

native = pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)
SOURCES = Path(__file__).parents[3] / "native/src"


def test_installed_module_has_no_place_to_die_at() -> None:
    """Neither the hook nor the name of any place is in it; names of ordinary sections are."""
    module = Path(native.__file__).read_bytes()
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.c"))
    names = set(re.findall(r"VHB_CRASH\((\w+)\)", text))
    assert len(names) > 10
    assert b".rodata" in module
    assert b"vhb_crash" not in module
    assert not [name for name in names if b"\0" + name.encode() + b"\0" in module]
