"""The page of symptoms shows every hint as the log has it, and none that there is not."""

import re
from pathlib import Path

import pytest

from vhostblk.server import hints
from vhostblk.server.enforcement import VIOLATION

PAGE = Path(__file__).parents[2] / hints.PAGE
BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"\\\{.*?\}")
OURS = "vda: "
TEXTS = [
    value
    for name, value in vars(hints).items()
    if name.isupper() and isinstance(value, str) and value.endswith(f"See {hints.PAGE}")
]


def shown() -> list[str]:
    """Return the lines of the log that the page shows."""
    lines = "".join(BLOCK.findall(PAGE.read_text())).splitlines()
    return [line.removeprefix(OURS) for line in lines if line.startswith(OURS)]


def pattern(text: str) -> str:
    """Return what a text looks like with its fields filled in."""
    return FIELD.sub("[^,(:]+?", re.escape(text))


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:40])
def test_every_hint_is_shown(text: str) -> None:
    """Once, word for word."""
    assert len([line for line in shown() if re.fullmatch(pattern(text), line)]) == 1


def test_no_other_line_is_shown_as_ours() -> None:
    """What the page says we print is what we print."""
    assert len(TEXTS) >= 5
    plain = re.compile(
        r"queue \d+ is broken: .* \(index \d+, value 0x[0-9a-f]+\); it waits for a restart"
    )
    violation = re.compile(re.sub(r"%d|%\\\#x|%s", ".*?", re.escape(VIOLATION)))
    lines = shown()
    assert len([line for line in lines if violation.fullmatch(line)]) == 1
    for line in lines:
        assert (
            plain.fullmatch(line)
            or violation.fullmatch(line)
            or any(re.fullmatch(pattern(text), line) for text in TEXTS)
        )
