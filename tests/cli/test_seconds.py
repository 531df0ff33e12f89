"""Times on the command line."""

import pytest

from vhostblk.cli import main

NOWHERE = "/nowhere/vhostblk.sock"


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--drain-timeout", "nan"),
        ("serve", "--drain-timeout", "0"),
        ("serve", "--slow-request", "nan"),
        ("serve", "--slow-request", "-1"),
        ("ctl", "--timeout", "nan"),
        ("ctl", "--timeout", "inf"),
        ("upgrade", "--timeout", "nan"),
        ("demo", "--timeout", "1000001"),
    ],
)
def test_a_time_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], words: tuple[str, str, str]
) -> None:
    """The line says for which option; "nan" compares with nothing, so no range would refuse it."""
    command, option, text = words
    rest = {"serve": ["--socket-path", NOWHERE, "null:1M"], "ctl": ["version"]}.get(command, [])
    assert main.main([command, option, text, *rest]) == 2
    said = capsys.readouterr().err
    assert f"Invalid value for '{option}': " in said
    assert text in said
    assert said.count("\n") == 1
